// Stands in for a header of Gloo that Debian's libgloo-dev leaves out although gloo/transport/tcp/pair.h includes it. Found only where
// Gloo's own is missing (-idirafter). Only the layout counts here: one standard pointer each; what Gloo does with them stays in its
// library.
#pragma once

#include <memory>

namespace gloo {

// While it lives, the object it was made from does.
template <typename T>
class NonOwningPtr final {
  std::shared_ptr<T> ptr_;
};

// May outlive its object.
template <typename T>
class WeakNonOwningPtr final {
  std::weak_ptr<T> ptr_;
};

// An object's own, to which the others refer.
template <typename T>
class ShareableNonOwningPtr final {
  std::shared_ptr<T> ptr_;
};

}  // namespace gloo
