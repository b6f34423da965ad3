// Included inside an ISA region, once for each ISA namespace.

// The lines of y that a group of outputs will be written to. They are fetched one by one between
// the multiply-adds: asked for all at once they would hold up every other load.
template <class T>
class LinesAhead {
 public:
  LinesAhead(T* y, int64_t stride, int64_t tokens) : next_(y), stride_(stride), left_(tokens) {}

  int64_t left() const { return left_; }

  SPARSEKERN_INLINE void fetch() {
    __builtin_prefetch(next_, 1, 3);
    next_ += stride_;
    --left_;
  }

 private:
  T* next_;
  int64_t stride_, left_;
};
