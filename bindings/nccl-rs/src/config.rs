//! Options of a communicator.

use std::ffi::CString;

use crate::error::NcclError;
use crate::sys;

/// The number that opens every configuration.
const MAGIC: u32 = 0xcafe_beef;
/// The version whose fields `ncclConfig_t` in this crate describes.
const DESCRIBED: u32 = 22700;
/// NCCL's mark for "not set".
const UNSET: i32 = i32::MIN;
/// Most thread blocks that NCCL knows: `MAXCHANNELS`. A library that knows fewer takes its own.
const MOST_CTAS: i32 = 64;

/// Options of a communicator; `None` leaves NCCL's default. A library that does not know an option yet ignores it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Fewest thread blocks of an operation.
    pub min_ctas: Option<u32>,
    /// Most thread blocks of an operation: what moving experts may take from the model.
    pub max_ctas: Option<u32>,
    /// Thread blocks per cluster, 0 to 8.
    pub cga_cluster_size: Option<u32>,
    /// Name of the network plugin's module, such as `"IB"` or `"Socket"`.
    pub net_name: Option<String>,
    /// Traffic class on networks that know them (2.26 and later).
    pub traffic_class: Option<i32>,
    /// Name in NCCL's logs (2.27 and later).
    pub name: Option<String>,
}

/// A configuration as NCCL reads it, with the strings that it points to.
pub(crate) struct RawConfig {
    pub(crate) raw: sys::ncclConfig_t,
    _strings: [Option<CString>; 2],
}

impl Config {
    pub(crate) fn raw(&self) -> Result<RawConfig, NcclError> {
        let string = |text: &Option<String>| -> Result<Option<CString>, NcclError> {
            text.as_ref()
                .map(|text| CString::new(text.as_str()).map_err(|_| NcclError::Name(text.clone())))
                .transpose()
        };
        let strings = [string(&self.net_name)?, string(&self.name)?];
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let number =
            |value: Option<u32>| value.map_or(UNSET, |value| i32::try_from(value).unwrap_or(i32::MAX));
        // NCCL 2.28.3 refuses a least number without a largest one: to it, "not set" is smaller than any.
        let (min_ctas, max_ctas) = (number(self.min_ctas), number(self.max_ctas));
        let max_ctas =
            if max_ctas == UNSET && min_ctas != UNSET { MOST_CTAS.max(min_ctas) } else { max_ctas };
        let raw = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: MAGIC,
            version: DESCRIBED,
            blocking: 0,
            cgaClusterSize: number(self.cga_cluster_size),
            minCTAs: min_ctas,
            maxCTAs: max_ctas,
            netName: pointer(&strings[0]),
            splitShare: UNSET,
            trafficClass: self.traffic_class.unwrap_or(UNSET),
            commName: pointer(&strings[1]),
            collnetEnable: UNSET,
            CTAPolicy: UNSET,
            shrinkShare: UNSET,
            nvlsCTAs: UNSET,
        };
        // Strings keep their place on the heap when they move.
        Ok(RawConfig { raw, _strings: strings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_opens_with_size_magic_and_version() {
        let config = Config { max_ctas: Some(8), net_name: Some("Socket".into()), ..Config::default() };
        let raw = config.raw().unwrap();
        assert_eq!((raw.raw.size, raw.raw.magic, raw.raw.version), (72, 0xcafe_beef, 22700));
        assert_eq!((raw.raw.blocking, raw.raw.maxCTAs, raw.raw.minCTAs), (0, 8, i32::MIN));
        assert!(raw.raw.commName.is_null() && !raw.raw.netName.is_null());
        let least = Config { min_ctas: Some(16), ..Config::default() }.raw().unwrap();
        assert_eq!((least.raw.minCTAs, least.raw.maxCTAs), (16, 64), "a least number alone is refused");
        let unset = Config::default().raw().unwrap();
        assert_eq!((unset.raw.minCTAs, unset.raw.maxCTAs), (i32::MIN, i32::MIN));
        let bad = Config { name: Some("a\0b".into()), ..Config::default() };
        assert_eq!(bad.raw().err(), Some(NcclError::Name("a\0b".into())));
    }
}
