// Causal softmax attention with grouped heads and documents (FlashAttention-2, arXiv 2307.08691): for query i of a row
//   s_ij = scale q_i . k_j,   o_i = sum_j exp(s_ij - L_i) v_j,   L_i = log sum_j exp(s_ij)   over the keys j it sees.
// Memory grows with the length, not with its square. Query head h reads kv head h / (heads / kv heads).
//
// Positions in the whole sample say what a query sees. The query at position q sees the key at position p where
//   first_visible(q) <= p <= q.
// So the same form serves whole rows, documents, and blocks of keys that another rank's slice holds.
#pragma once

#include <string>

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

struct SoftmaxAttentionInputs {
  Tensor query;        // [batch, length, heads, key width], unit inner stride, any other strides
  Tensor key;          // [batch, key length, kv heads, key width]; kv heads divides heads
  Tensor value;        // [batch, key length, kv heads, value width]
  double scale = 1.0;  // 1 / sqrt(key width) as a rule
  // int64 [batch, length] and [batch, key length], contiguous, from 0, increasing along a row. Both null: 0, 1, 2, ...,
  // the same for keys as for queries.
  Tensor query_positions = {}, key_positions = {};
  Tensor first_visible = {};  // int64 [batch, length], contiguous, as document_starts writes it; null: 0 for all
  // Every query sees every key, whatever the positions: a block of keys that lies wholly before the queries, in one
  // document with them. GPUs have faster paths for this and for whole rows without positions and documents.
  bool sees_all = false;
};

// The position of the first token of each token's document, for `first_visible`. positions int64 [batch, length];
// segments int64 [segments + 1] as LinearAttentionInputs has them. A row consists of `pieces` equal pieces, each of
// neighbouring tokens of the sample, and segments end where pieces do. tokens_before int64 [batch, pieces] (or [batch],
// one piece): by how many tokens the first document of each piece began before it; null: 0. All contiguous.
void document_starts(const Execution& execution, const Tensor& segments, const Tensor& positions,
                     const Tensor& tokens_before, const Tensor& first_visible);
FULMEN_BACKENDS(document_starts);

// output [batch, length, heads, value width], strided as the inputs may be, their dtype. log_sum_exp [batch, heads,
// length], contiguous, accumulation dtype: L. A query that sees no key gets an output of 0 and an L of minus infinity.
void softmax_attention_forward(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output,
                               const Tensor& log_sum_exp);
FULMEN_BACKENDS(softmax_attention_forward);

// Merges the result over a block of keys into the result over the blocks before, as if both had been one block:
//   L = log(exp(L) + exp(L_block)),  o = exp(L_old - L) o + exp(L_block - L) o_block.
// output [batch, length, heads, value width] in the accumulation dtype or the block's; log_sum_exp as above. `first`:
// what stands there is of no block, and is overwritten.
void merge_attention(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum_exp,
                     bool first, const Tensor& output, const Tensor& log_sum_exp);
FULMEN_BACKENDS(merge_attention);

struct SoftmaxAttentionGradients {
  // From the forward pass over all keys, whichever of them `inputs` has; the inputs' dtype. d_output as output.
  Tensor output, log_sum_exp, d_output;
  Tensor d_query, d_key, d_value;  // strided as the inputs may be; they may not alias the inputs
  // false: written, in the inputs' dtype. true: added to, in the accumulation dtype, as a ring of blocks needs it.
  bool add = false;
};

// With P_ij = exp(s_ij - L_i) and D_i = d_o_i . o_i:
//   dS = P .* (d_o V^T - D),  d_q = scale dS K,  d_k = scale dS^T q,  d_v = P^T d_o.
// Sums have a fixed order. Over one block of keys, the shares of that block.
void softmax_attention_backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                const SoftmaxAttentionGradients& gradients);
FULMEN_BACKENDS(softmax_attention_backward);

// Which paths this build has for GPUs, in words, for `doctor`.
std::string softmax_attention_paths();

// Decoding. Keys and values of the tokens before, in memory that the caller owns; contiguous.
struct SoftmaxAttentionCache {
  Tensor keys;     // [batch, kv heads, most tokens, key width]
  Tensor values;   // [batch, kv heads, most tokens, value width]
  Tensor lengths;  // int64 [batch]: tokens that each row holds
};

// Writes key and value [batch, length, kv heads, width] behind each row's tokens. `lengths` stays: the caller adds
// `length` once all layers have appended. Where they do not fit, it throws on the CPU. A GPU alone knows `lengths`:
// there nothing is written, and the step after it yields NaN.
void softmax_attention_append(const Execution& execution, const Tensor& key, const Tensor& value,
                              const SoftmaxAttentionCache& cache);
FULMEN_BACKENDS(softmax_attention_append);

// One token a row: appends inputs.key and inputs.value, both [batch, 1, kv heads, width]. Then inputs.query [batch, 1,
// heads, key width] attends to all lengths + 1 of them. output [batch, 1, heads, value width]. Positions and
// first_visible of the inputs are ignored.
void softmax_attention_step(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                            const SoftmaxAttentionCache& cache, const Tensor& output);
FULMEN_BACKENDS(softmax_attention_step);

}  // namespace fulmen
