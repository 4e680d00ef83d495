// SPDX-License-Identifier: Apache-2.0
// The list of mathematical functions that the layers use: the one place where a back end begins. Letters: T tokens,
// H hidden, F ffn width, E experts, K top-k, V vocabulary, NH heads, D head dimension. Tensors are row-major views; all
// floating tensors of one call have the same element type (f32, or f64 where the back end is the reference).
// Outputs are overwritten unless the comment says "adds". No function allocates from an arena or communicates.
//
// A call may return before it is done, as on a device. Calls are done one after the other, so kernels need not care; the host
// must, for tensors of memory():
//   - where memory().is_on_host() is false it reads and writes copies: Memory::read and write, OnHost, host_side();
//   - Arena::take_result is for what both use: it reads when launched() of that time is complete, or after synchronize(), and
//     writes where nothing that was launched reads or writes;
//   - Arena::take_host is for what it alone writes.
// In memory of the host a call has read and written what it will when it returns.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/job/request.hpp"
#include "comm/wire/format.hpp"
#include "layers/kernels/product_choice.hpp"
#include "layers/tensor/parameter.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

// Times of what a back end computes, taken where it computes.
class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  virtual void start() = 0;
  // Since start, when all that was called in between is done.
  virtual double stop_ms() = 0;
};

class ThreadPool;

enum class Accumulate { no, yes };
enum class Activation { relu, gelu, silu };  // gelu: x Phi(x) with erf; silu: x sigmoid(x)
enum class RopeDirection { forward, backward };

// Which elements of a head make pair i of n: (i, i + n), the rotate-half form, or (2i, 2i + 1), that of DeepSeek-V2 and V3.
enum class RopeLayout { halves, interleaved };

// How a head turns with its position (Su et al. 2021): pair i of columns first .. first + 2 n turns by position
// frequencies[i] and is multiplied by `factor`; other columns stay. nn/rope makes these.
struct Rope {
  std::vector<double> frequencies;  // n, radians a position
  RopeLayout layout = RopeLayout::halves;
  int64_t first = 0;
  double factor = 1.0;
};

// Columns first .. first + count of the rows along the last axis of a tensor.
struct Columns {
  Tensor rows;
  int64_t first = 0;
  int64_t count = 0;
};

// Of a weight [NH G, K], rows first .. first + count of the G rows that each head has.
struct HeadRows {
  const Tensor& weight;
  int64_t num_heads = 0;
  int64_t first = 0;
  int64_t count = 0;
};

// Rows first .. first + count of a tensor, none or more, and the weight that they meet.
struct RowGroup {
  int64_t first = 0;
  int64_t count = 0;
  const Parameter* weight = nullptr;
};
using RowGroups = std::span<const RowGroup>;

// Sequences of equal length, stored one after the other. Query t of a sequence sits at absolute position
// kv_len - q_len + t and sees keys 0 .. that position. Key/value row j of sequence b is row b * kv_stride + j.
struct AttentionShape {
  int64_t batch;
  int64_t q_len;
  int64_t kv_len;
  int64_t kv_stride;
  int64_t num_heads;
  int64_t num_kv_heads;  // divides num_heads; head h reads key/value head h / (num_heads / num_kv_heads)
  int64_t head_dim;      // D: of a query and a key
  int64_t value_dim;     // DV: of a value and an output
  double scale;
};

// The router of DeepSeek-V2 and V3 behind its logits (layers/moe: score, bias, eligibility, select, weights).
struct RouteRule {
  bool softmax = false;  // else sigmoid
  int64_t groups = 1;    // of experts, of which `kept` may be chosen from
  int64_t kept = 1;
  int64_t summed = 1;  // the score of a group is the sum of so many of its best
  bool renormalise = true;
  double scale = 1.0;
};

// What a router finds for each token, and, where they are defined, what losses need beside it.
struct RouteResult {
  Tensor scores;      // [T,E]
  Tensor ids;         // i32[T,K], best first, -1 where there is none
  Tensor weights;     // [T,K]
  Tensor not_finite;  // i32[T]: 1 where a logit is NaN or infinite; then the rest means nothing
  Tensor best;        // i32[T,K], the best by scores alone, whatever bias and groups say
  Tensor inverse;     // [T,1]: 1 / (sum of the token's scores + 1e-20)
};

// Derivatives of losses: by the shares score / (sum of the token's scores), a row [E] for each T / G tokens in turn, and by the
// scores. Undefined: none.
struct RouteSlopes {
  Tensor by_share;  // [G,E]
  Tensor by_score;  // [E]
};

// Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), bias-corrected.
struct AdamWStep {
  double learning_rate;
  double beta1;
  double beta2;
  double epsilon;
  double weight_decay;
  double grad_scale;  // multiplies the gradient first (clipping)
  int64_t step;       // 1 for the first update
};

class Kernels {
 public:
  virtual ~Kernels() = default;
  virtual std::string_view name() const = 0;
  // Where this back end has tensors at hand. It takes others too, and may copy them.
  virtual Memory& memory() const { return host_memory(); }
  // Complete once all calls so far are done. On a back end whose calls are done when they return, at once.
  virtual Request launched() const { return {}; }
  // Waits for them. For code that cannot await: lanes stand still.
  void synchronize() const { memory().synchronize(); }
  // The queue of this back end's operations, a handle of the device's library (cudaStream_t); null on the host. For
  // Transport::follow.
  virtual void* queue() const { return nullptr; }
  // Packs rows for an exchange in the order of the calls (ExchangeSetup::device_codec). Null where the host does.
  virtual const RowCodec* device_codec() const { return nullptr; }
  // The same back end with its products in fp32, whatever its own precision is.
  virtual const Kernels& fp32() const { return *this; }
  // The same back end for products that are never in fp8, as those of the head: fp32 instead of it.
  virtual const Kernels& without_fp8() const { return *this; }
  // Of the device that computes, by events of its own; else of the host. This back end must outlive it.
  virtual std::unique_ptr<DeviceClock> make_clock() const;
  // dst = src, of one shape: the device's own copy, which is as fast as memory is.
  virtual void copy(const Tensor& src, const Tensor& dst) const;

  // --- products with a weight W [N,K], f32, or, where the back end is the CPU's, fixed in bf16 or fp8 -----------------------------------------------------------------------------
  // y[T,N] = x[T,K] W^T
  virtual void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const = 0;
  // dx[T,K] = dy[T,N] W, or adds
  virtual void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                 Accumulate accumulate) const = 0;
  // dw[N,K] = dy[T,N]^T x[T,K], or adds. T = 0 writes zeros, or leaves dw.
  virtual void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const = 0;

  // --- the same for groups of rows with a weight each: the experts of a rank --------------------------------------
  // Weights of one call have one shape [N,K]; groups lie one behind the other and cover y and dx. groups_products: whether
  // such a call is better than group by group with the rest of an expert in between, so that rows stay in cache.
  virtual bool groups_products() const { return false; }
  // RowBits::everywhere: decoding has the bits of a pass over whole sequences, as far as it does the same products.
  virtual bool rows_independent() const { return false; }
  virtual void grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const;
  virtual void grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const;
  // Into the gradients of the weights, or adds to them.
  virtual void grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                          Accumulate accumulate) const;

  // --- normalisation over the last axis ---------------------------------------------------------------------------
  // RMSNorm (Zhang and Sennrich 2019): y = w x rstd, rstd[T] = (mean(x^2) + epsilon)^-1/2
  virtual void rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y,
                        const Tensor& rstd) const = 0;
  virtual void rms_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                   const Tensor& dx) const = 0;
  // adds to dweight[H]
  virtual void rms_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& rstd,
                                    const Tensor& dweight) const = 0;
  // LayerNorm (Ba et al. 2016): y = w (x - mean) rstd + b
  virtual void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon, const Tensor& y,
                          const Tensor& mean, const Tensor& rstd) const = 0;
  virtual void layer_norm_input_grad(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                     const Tensor& rstd, const Tensor& dx) const = 0;
  // adds to dweight[H] and dbias[H]
  virtual void layer_norm_weight_grad(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                      const Tensor& dweight, const Tensor& dbias) const = 0;

  // --- element-wise -----------------------------------------------------------------------------------------------
  virtual void activation(Activation kind, const Tensor& x, const Tensor& y) const = 0;  // y may be x
  // dx = dy f'(x); dx may be dy
  virtual void activation_grad(Activation kind, const Tensor& x, const Tensor& dy, const Tensor& dx) const = 0;
  // SwiGLU (Shazeer 2020): gate_up[T,2F] holds gate in columns 0..F and up in F..2F; y[T,F] = silu(gate) up
  virtual void swiglu(const Tensor& gate_up, const Tensor& y) const = 0;
  virtual void swiglu_grad(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) const = 0;
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& out) const = 0;  // out may be a or b
  // out = alpha a + beta b; out may be a or b
  virtual void scaled_sum(double alpha, const Tensor& a, double beta, const Tensor& b, const Tensor& out) const = 0;
  // out = g a + (1 - g) b; all of one shape
  virtual void blend(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& out) const = 0;
  // dg = dout (a - b), da = g dout, db = (1 - g) dout
  virtual void blend_grad(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& dout, const Tensor& dg,
                          const Tensor& da, const Tensor& db) const = 0;
  // y = max(-limit, min(limit, x)); y may be x
  virtual void clip(double limit, const Tensor& x, const Tensor& y) const = 0;
  // dx = dy where |x| <= limit, else 0; dx may be dy
  virtual void clip_grad(double limit, const Tensor& x, const Tensor& dy, const Tensor& dx) const = 0;
  virtual double sum_squares(const Tensor& x) const = 0;

  // --- attention --------------------------------------------------------------------------------------------------
  // Turns the heads of x[T,NH,D] in place, or, backward, a gradient. positions is i32[T].
  virtual void rope(const Tensor& x, const Tensor& positions, const Rope& rope, RopeDirection direction) const = 0;
  // Causal softmax attention. q [batch q_len, NH, D], k [batch kv_stride, NKV, D], v [batch kv_stride, NKV, DV],
  // out [batch q_len, NH, DV]; lse [batch, NH, q_len] is the log of the softmax denominator, which backward uses to
  // rebuild the probabilities (Dao et al. 2022). Here, not in attention_grad, v may have longer rows, of which the first
  // DV elements count: v may be k.
  virtual void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& out, const Tensor& lse) const = 0;
  // Writes all of dq, and of dk and dv the first kv_len rows of each sequence; rows behind them stay as they are.
  virtual void attention_grad(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                              const Tensor& dk, const Tensor& dv) const = 0;

  // --- parts of rows: latent attention (DeepSeek-V2, arXiv 2405.04434) --------------------------------------------
  // Row r of dst = row r / n of src, where dst has n times the rows of src; both of `count` columns.
  virtual void copy_columns(const Columns& src, const Columns& dst) const = 0;
  // Row r of dst = the sum of rows r n .. r n + n of src, where src has n times the rows of dst.
  virtual void sum_columns(const Columns& src, const Columns& dst) const = 0;
  // dst = factor src, or adds; as many rows and columns of each. The default computes on the host.
  virtual void scale_columns(double factor, const Columns& src, const Columns& dst, Accumulate accumulate) const;
  // With W_h the rows of head h: y[t,h,:] = W_h x[t,h,:], x [T,NH,K], y [T,NH,count].
  virtual void head_linear(const Tensor& x, const HeadRows& weight, const Tensor& y) const = 0;
  // y[t,h,:K] = x[t,h,:count] W_h; rows of x and y may be longer, and the rest of y stays.
  virtual void head_linear_transposed(const Tensor& x, const HeadRows& weight, const Tensor& y) const = 0;

  // --- vocabulary -------------------------------------------------------------------------------------------------
  // y[T,H] = table[ids[t], :]; ids is i32[T], every id in [0, V); on the CPU the table may be bf16
  virtual void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) const = 0;
  // adds dy rows to dtable[V,H], in token order; the host reads ids
  virtual void embedding_grad(const Tensor& ids, const Tensor& dy, const Tensor& dtable) const = 0;
  // losses[T] = logsumexp(logits[t]) - logits[t, targets[t]]; a target of -1 gives 0. targets is i32[T].
  virtual void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const = 0;
  // dlogits = scale (softmax(logits) - onehot(target)), a zero row where the target is -1; dlogits may be logits
  virtual void cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                                  const Tensor& dlogits) const = 0;

  // --- router -----------------------------------------------------------------------------------------------------
  virtual void softmax(const Tensor& x, const Tensor& y) const = 0;  // over the last axis
  virtual void softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const = 0;
  virtual void sigmoid(const Tensor& x, const Tensor& y) const = 0;
  virtual void sigmoid_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const = 0;
  // ids[T,K] (i32): the K largest of scores[t,:] + bias, best first; ties go to the lower index. bias [E] is in the
  // element type of scores, or undefined; the sum is rounded to that type. A NaN in it throws ErrorKind::numerics.
  virtual void top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const = 0;

  // The whole router in one pass, forward and backward, where a back end can do what the rule says; else that is left to the
  // pieces of layers/moe.
  virtual bool can_route(const RouteRule& /*rule*/, int64_t /*num_experts*/) const { return false; }
  // From logits [T,E]; experts are chosen by score + bias [E] (or undefined).
  virtual void route(const RouteRule& rule, const Tensor& logits, const Tensor& bias, const RouteResult& result) const;
  // dlogits [T,E] from scores and ids of the forward pass, dweights [T,K], and gradients of losses.
  virtual void route_grad(const RouteRule& rule, const Tensor& scores, const Tensor& ids, const Tensor& dweights,
                          const RouteSlopes& slopes, const Tensor& dlogits) const;

  // --- rows on their way to experts and back ----------------------------------------------------------------------
  // dst[r] = scale[r] src[index[r]]; index is i32[R]; scale [R] or undefined (1)
  virtual void gather_rows(const Rows& src, const Tensor& index, const Tensor& scale, const Tensor& dst) const = 0;
  // dst[r] = sum over j in [offsets[r], offsets[r+1]), in that order, of weight[j] src[index[j]].
  // offsets i32[R+1], index i32[S]; weight [S] or undefined (1). An empty range gives a zero row.
  virtual void sum_rows(const Rows& src, const Tensor& offsets, const Tensor& index, const Tensor& weight,
                        const Tensor& dst) const = 0;
  // out[j] = <a[a_index[j]], b[b_index[j]]>; a_index, b_index i32[S]
  virtual void dot_rows(const Rows& a, const Tensor& a_index, const Rows& b, const Tensor& b_index,
                        const Tensor& out) const = 0;

  // --- optimiser --------------------------------------------------------------------------------------------------
  // With g = grad_scale grad: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, and value -= learning_rate
  // (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon) + weight_decay value). m and v may be bf16: the value
  // moves by what they are before they are rounded.
  virtual void adamw(const AdamWStep& step, const Tensor& value, const Tensor& grad, const Tensor& m,
                     const Tensor& v) const = 0;
};

// Of the products with weights; everything else is fp32. fp8 is E4M3 with one scale for 1 x 128 values of a row and for
// 128 x 128 of a weight, a power of two in fp8_ue8m0, and sums in fp32 (DeepSeek-V3, arXiv 2412.19437, section 3.3).
enum class Precision { fp32, bf16, fp8, fp8_ue8m0 };

// Plain loops, accumulation in fp64; f32 and f64 tensors. The oracle of every kernel test.
std::unique_ptr<Kernels> make_reference_kernels();

// Of y = x W^T with weights that do not train, and of attention while decoding. independent: a row of the result has the same
// bits whatever other rows the call has (bf16: as far as oneDNN's instructions do it so). as_in_training: the bits of a weight
// that trains. everywhere: independent also with weights that train and in attention of any length.
enum class RowBits { independent, as_in_training, everywhere };
// How weights that do not train are kept for y = x W^T: as they are; rounded to bf16; int8 codes with a scale (fp32) for 32 of a
// row, the largest of them / 127; or E4M3 codes with a scale for 128 of a row. Sums are in fp32, rows independent.
enum class WeightFormat { fp32, bf16, int8, fp8 };

struct CpuOptions {
  RowBits bits = RowBits::independent;
  ThreadPool* threads = nullptr;  // of the thread that calls the kernels; nullptr: it computes alone
  ProductChoice products = {};    // who multiplies where neither `bits` nor `weights` say otherwise
  WeightFormat weights = WeightFormat::fp32;
};

// Vector code, OpenBLAS, and oneDNN where it was found; f32 tensors. Every call shares out its work to the threads. On a CPU
// without bf16 products bf16 rounds the operands and multiplies in fp32: the same numbers but for the order of additions, and no
// gain in speed. fp8 is emulated exactly, and slower than either.
std::unique_ptr<Kernels> make_cpu_kernels(Precision precision, const CpuOptions& options = {});
std::unique_ptr<DeviceClock> make_host_clock();
// Computes nothing and touches no memory: for dry runs of the memory plan.
std::unique_ptr<Kernels> make_null_kernels();

}  // namespace cadre
