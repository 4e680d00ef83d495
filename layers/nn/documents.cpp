// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/documents.hpp"

#include "comm/base/check.hpp"

namespace cadre {
namespace {

AttentionShape shape_of_run(AttentionShape shape, const DocumentRun& run) {
  shape.batch = run.batch;
  shape.q_len = shape.kv_len = shape.kv_stride = run.length;
  return shape;
}

// The elements of lse that belong to a run: as many for each row as there are heads.
Tensor lse_of_run(const Tensor& lse, int64_t num_heads, const DocumentRun& run) {
  const Tensor by_row = lse.reshape({lse.numel() / num_heads, num_heads});
  return by_row.rows(run.first, run.batch * run.length).reshape({run.batch, num_heads, run.length});
}

}  // namespace

std::vector<DocumentRun> document_runs(const Sequences& sequences) {
  if (sequences.documents.empty()) return {{0, sequences.batch, sequences.length}};
  std::vector<DocumentRun> runs;
  int64_t row = 0;
  for (const int64_t length : sequences.documents) {
    if (!runs.empty() && runs.back().length == length) {
      ++runs.back().batch;
    } else {
      runs.push_back({row, 1, length});
    }
    row += length;
  }
  CADRE_ASSERT(row == sequences.batch * sequences.length);
  return runs;
}

std::vector<int64_t> without_last_tokens(const Sequences& sequences) {
  std::vector<int64_t> shorter;
  int64_t row = 0;
  for (const int64_t length : sequences.documents) {
    row += length;
    const int64_t left = row % sequences.length == 0 ? length - 1 : length;
    if (left > 0) shorter.push_back(left);
  }
  return shorter;
}

void attend_documents(const Kernels& kernels, AttentionShape shape, const Sequences& sequences,
                      const AttentionRows& rows) {
  for (const DocumentRun& run : document_runs(sequences)) {
    const auto of_run = [&](const Tensor& tensor) { return tensor.rows(run.first, run.batch * run.length); };
    kernels.attention(shape_of_run(shape, run), of_run(rows.q), of_run(rows.k), of_run(rows.v), of_run(rows.out),
                      lse_of_run(rows.lse, shape.num_heads, run));
  }
}

void attend_documents_grad(const Kernels& kernels, AttentionShape shape, const Sequences& sequences,
                           const AttentionRows& rows, const Tensor& dout, const Tensor& dq, const Tensor& dk,
                           const Tensor& dv) {
  for (const DocumentRun& run : document_runs(sequences)) {
    const auto of_run = [&](const Tensor& tensor) { return tensor.rows(run.first, run.batch * run.length); };
    kernels.attention_grad(shape_of_run(shape, run), of_run(rows.q), of_run(rows.k), of_run(rows.v), of_run(rows.out),
                           lse_of_run(rows.lse, shape.num_heads, run), of_run(dout), of_run(dq), of_run(dk),
                           of_run(dv));
  }
}

}  // namespace cadre
