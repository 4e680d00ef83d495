// SPDX-License-Identifier: Apache-2.0
// Attention inside the documents of packed sequences. Kernels know batches of sequences of one length only; here the rows
// of a batch become one kernel call for each run of documents of one length, so every back end computes exactly what it
// would for the documents alone.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/nn/attention.hpp"

namespace cadre {

// `batch` documents of `length` tokens each, from row `first` on.
struct DocumentRun {
  int64_t first = 0;
  int64_t batch = 0;
  int64_t length = 0;
};

// All rows in order; neighbours of equal length form one run. Without documents one run: the sequences themselves.
std::vector<DocumentRun> document_runs(const Sequences& sequences);

// The documents of sequences that have each lost their last token.
std::vector<int64_t> without_last_tokens(const Sequences& sequences);

// Kernels::attention and attention_grad over the documents. Only heads, dimensions and scale of `shape` are read. Tensors
// as there, of sequences without cache; lse [batch, NH, length], in an order that only attend_documents_grad knows.
struct AttentionRows {
  Tensor q, k, v, out, lse;
};
void attend_documents(const Kernels& kernels, AttentionShape shape, const Sequences& sequences,
                      const AttentionRows& rows);
void attend_documents_grad(const Kernels& kernels, AttentionShape shape, const Sequences& sequences,
                           const AttentionRows& rows, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                           const Tensor& dv);

}  // namespace cadre
