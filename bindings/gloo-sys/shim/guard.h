// A TCP device of Gloo whose connections only ranks of the group get.
//
// Gloo takes whoever connects first to a listening port for the peer, and a frame that it does not expect ends the process: the
// thread that reads it throws. Here the side that connects greets first: 32 bytes that only who knows the group's secret can say. A
// port stays open until its peer has come; strangers are turned away and cost nothing. What a connection still throws while it
// is read closes that connection, with an error for whoever uses it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#pragma GCC visibility push(default)
#include <gloo/transport/device.h>
#include <gloo/transport/tcp/attr.h>
#pragma GCC visibility pop

namespace guard {

using Secret = std::array<uint8_t, 16>;

std::shared_ptr<gloo::transport::Device> make_device(const gloo::transport::tcp::attr &where, const Secret &secret);

}  // namespace guard
