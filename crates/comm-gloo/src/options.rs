//! How a rank connects and carries.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use gloo_sys::Device;

/// Choices of one rank. `small_bytes` and `piece_bytes` must be the same on all ranks; this is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where this rank listens for the others.
    pub device: Device,
    /// Keys in the store begin with this.
    pub prefix: String,
    /// Waves that carry bytes at a time, each on a thread per direction; later ones wait.
    pub lanes: usize,
    /// Messages of a wave that are under way at a time, per direction.
    pub window: usize,
    /// Tensors of fewer bytes than this, over all rows, travel together with the header of their expert.
    pub small_bytes: usize,
    /// Larger tensors travel in pieces of at most this many bytes.
    pub piece_bytes: usize,
    /// Memory for packing messages, bytes, over all lanes; of ranks on devices it is pinned. More is taken only where two messages per lane do not fit.
    pub packing_bytes: usize,
    /// Longest time for one attempt to connect all ranks, before the next generation is tried.
    pub attempt: Duration,
    /// Longest time for one operation of the store while a failure is reported.
    pub report: Duration,
    /// Faults for tests.
    #[doc(hidden)]
    pub planted: Vec<Planted>,
}

/// Faults that tests plant in the code that carries bytes. Each strikes in the first wave.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The `nth` message that this rank sends goes to a wrong slot.
    WrongSlot { nth: usize },
    /// The headers that this rank sends name another expert.
    OtherExpert,
    /// Headers that arrive are not looked at.
    HeaderIgnored,
    /// Packed tensors that arrive are not unpacked.
    NotUnpacked,
    /// Waits run out after 20 ms.
    ExpiringWait,
    /// A failure is not put in the store.
    NotReported,
    /// Bells are not rung.
    NotRung,
    /// Whoever connects first to a port is taken for the peer.
    Unguarded,
    /// Messages are sent before the device has brought their bytes.
    SentEarly,
    /// What arrives counts as landed before the device has brought it to its place.
    LandedEarly,
    /// Packing memory is used again before the device has brought what was in it to its place.
    CellReused,
    /// This rank counts as at rest before the device has ended its copies.
    QuietEarly,
    /// Every piece of a tensor goes to its beginning, and comes from there.
    PieceElsewhere,
}

impl Default for Options {
    /// On the loopback address: for ranks of one host.
    fn default() -> Self {
        Self::on(Device::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }
}

impl Options {
    /// The defaults, listening on a device.
    pub fn on(device: Device) -> Self {
        Self {
            device,
            prefix: "gloo".into(),
            lanes: 2,
            window: 16,
            small_bytes: 64 << 10,
            piece_bytes: 4 << 20,
            packing_bytes: 32 << 20,
            attempt: Duration::from_secs(10),
            report: Duration::from_secs(1),
            planted: Vec::new(),
        }
    }

    /// The defaults, listening on the address by which this host reaches `target`, such as the store's server: its peers most
    /// likely reach it there too. No packet is sent.
    ///
    /// # Errors
    /// There is no way to `target`.
    pub fn toward(target: SocketAddr) -> std::io::Result<Self> {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        Ok(Self::on(Device::Address(socket.local_addr()?.ip())))
    }

    /// For slots on devices, from and to which all bytes go through packing memory: in pieces small enough that a lane has several under way.
    #[must_use]
    pub fn staged(self) -> Self {
        Self { piece_bytes: self.piece_bytes.min(1 << 20), ..self }
    }

    pub(crate) fn has(&self, planted: Planted) -> bool {
        self.planted.contains(&planted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_loopback_is_loopback() {
        let options = Options::toward("127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(options.device, Device::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
