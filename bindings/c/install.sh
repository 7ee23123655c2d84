#!/bin/sh
# Installs the C library into a prefix: lib/libeplb.so (and what its soname says), lib/libeplb.a, include/eplb.h and lib/pkgconfig/eplb.pc.
# Usage: install.sh FOLDER_OF_THE_BUILT_LIBRARIES PREFIX. With DESTDIR set everything goes below that, as for packages.
set -eu
[ $# = 2 ] || { echo "usage: $0 FOLDER_OF_THE_BUILT_LIBRARIES PREFIX" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
built=$1
prefix=$2
case $prefix in /*) ;; *) echo "$prefix: the prefix must begin with /, because eplb.pc names it" >&2; exit 2 ;; esac
to=${DESTDIR:-}$prefix
version=$(sed -n '/^\[workspace\.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")
abi=$(sed -n 's/^#define EPLB_ABI_VERSION \([0-9]*\)$/\1/p' "$root/crates/capi/include/eplb.h")
[ -n "$version" ] && [ -n "$abi" ] || { echo "no version in Cargo.toml, or none in eplb.h" >&2; exit 1; }
mkdir -p "$to/lib/pkgconfig" "$to/include"
install -m 755 "$built/libeplb.so" "$to/lib/libeplb.so.$abi.$version"
ln -sf "libeplb.so.$abi.$version" "$to/lib/libeplb.so.$abi"
ln -sf "libeplb.so.$abi" "$to/lib/libeplb.so"
install -m 644 "$built/libeplb.a" "$to/lib/libeplb.a"
install -m 644 "$root/crates/capi/include/eplb.h" "$to/include/eplb.h"
sed -e "s|@prefix@|$prefix|" -e "s|@version@|$version|" "$here/eplb.pc.in" >"$to/lib/pkgconfig/eplb.pc"
# The gloo backend is a library of its own, loaded from beside this one when ranks are processes.
if [ -e "$built/libeplb_gloo.so" ]; then
  install -m 755 "$built/libeplb_gloo.so" "$to/lib/libeplb_gloo.so"
fi
