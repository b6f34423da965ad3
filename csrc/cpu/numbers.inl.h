// Numbers as they are stored, and as they are summed up. Included inside an ISA region, once for
// each ISA namespace.

static SPARSEKERN_INLINE float widened(float x) { return x; }
static SPARSEKERN_INLINE float widened(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

static SPARSEKERN_INLINE void round_to(float x, float* to) { *to = x; }
// To nearest, ties to even; a NaN stays one, quiet.
static SPARSEKERN_INLINE void round_to(float x, BFloat16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = (uint16_t)(x != x ? (bits >> 16) | 0x40 : rounded);
}

template <class V>
static SPARSEKERN_INLINE void store_first(float* to, typename V::Reg v, int n) {
  V::store_first(to, v, n);
}
template <class V>
static SPARSEKERN_INLINE void store_first(BFloat16* to, typename V::Reg v, int n) {
  float lane[V::kLanes];
  V::store(lane, v);
  for (int i = 0; i < n; ++i) round_to(lane[i], to + i);
}

template <class V>
static SPARSEKERN_INLINE void store_all(float* to, typename V::Reg v) {
  V::store(to, v);
}
template <class V>
static SPARSEKERN_INLINE void store_all(BFloat16* to, typename V::Reg v) {
  store_first<V>(to, v, V::kLanes);
}
