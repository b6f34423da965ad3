// Activations on a vector. Included inside an ISA region, once for each ISA namespace.

// exp(x) for x in [-87, 88]: x = n ln 2 + r, then a degree-6 Taylor polynomial of r (2 ulp).
template <class V>
SPARSEKERN_INLINE typename V::Reg exp_in_range(typename V::Reg x) {
  const typename V::Reg n = V::round(V::mul(x, V::set(1.44269504f)));
  typename V::Reg r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  typename V::Reg p = V::set(1.0f / 720);
  p = V::fma(p, r, V::set(1.0f / 120));
  p = V::fma(p, r, V::set(1.0f / 24));
  p = V::fma(p, r, V::set(1.0f / 6));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  return V::mul(p, V::exp2i(n));
}

// erf(x) for x >= -4, as x P(x^2) / Q(x^2) up to 4, beyond which it is 1 in float; largest error
// 3.9e-7.
template <class V>
SPARSEKERN_INLINE typename V::Reg erf(typename V::Reg x) {
  x = V::min(V::set(4.0f), x);
  const typename V::Reg t = V::mul(x, x);
  typename V::Reg p = V::set(1.9748511022044113e-06f);
  p = V::fma(p, t, V::set(0.00028804023168049753f));
  p = V::fma(p, t, V::set(0.004003565292805433f));
  p = V::fma(p, t, V::set(0.05346722528338432f));
  p = V::fma(p, t, V::set(0.19624701142311096f));
  p = V::fma(p, t, V::set(1.128378987312317f));
  typename V::Reg q = V::set(3.7481022445717826e-05f);
  q = V::fma(q, t, V::set(0.0012163417413830757f));
  q = V::fma(q, t, V::set(0.0154442572966218f));
  q = V::fma(q, t, V::set(0.11647561937570572f));
  q = V::fma(q, t, V::set(0.5072505474090576f));
  q = V::fma(q, t, V::set(1.0f));
  return V::div(V::mul(x, p), q);
}

// gelu and silu bound x below, not only what they compute from it: an error of one ulp in the
// factor that vanishes would be multiplied by x, which may be huge.
template <class V>
SPARSEKERN_INLINE typename V::Reg activate(typename V::Reg x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return V::max(V::zero(), x);
    case Activation::kGelu: {
      x = V::max(V::set(-5.65685f), x);
      const typename V::Reg e = erf<V>(V::mul(x, V::set(0.70710678f)));
      return V::mul(V::mul(x, V::set(0.5f)), V::add(V::set(1.0f), e));
    }
    case Activation::kSilu: {
      x = V::max(V::set(-87.0f), x);
      const typename V::Reg minus = V::mul(x, V::set(-1.0f));
      const typename V::Reg e = exp_in_range<V>(V::max(V::set(-87.0f), minus));
      return V::div(x, V::add(V::set(1.0f), e));
    }
    case Activation::kRelu6:
      return V::min(V::set(6.0f), V::max(V::zero(), x));
    case Activation::kHardswish: {
      const typename V::Reg gate = V::add(x, V::set(3.0f));
      return V::mul(x, V::mul(V::min(V::set(6.0f), V::max(V::zero(), gate)), V::set(1.0f / 6)));
    }
    default:
      return x;
  }
}

// Activations that are bounds of x, or none. Loops over many registers apply these, and leave those
// that are more to activate_rows: each register would have code of its own for every one of them.
template <class V>
struct Bounds {
  typename V::Reg least, most;

  explicit SPARSEKERN_INLINE Bounds(Activation activation) {
    const bool is_relu = activation == Activation::kRelu || activation == Activation::kRelu6;
    least = V::set(is_relu ? 0.0f : -__builtin_inff());
    most = V::set(activation == Activation::kRelu6 ? 6.0f : __builtin_inff());
  }

  SPARSEKERN_INLINE typename V::Reg apply(typename V::Reg x) const {
    return V::min(most, V::max(least, x));
  }
};

static inline bool is_more_than_bounds(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kSilu ||
         activation == Activation::kHardswish;
}
