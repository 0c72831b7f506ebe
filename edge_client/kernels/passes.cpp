#include "passes.h"

#include <algorithm>

#include "winograd.h"

namespace sparsefleet {
namespace {

// Run fn(begin, end) over [0, count) in pieces that are worth a hand-over.
template <class Function>
void over_entries(Context& context, size_t count, const Function& fn) {
    constexpr size_t PIECE = 16 * 1024;
    context.parallel(static_cast<int64_t>((count + PIECE - 1) / PIECE), [&](int64_t piece) {
        const size_t begin = static_cast<size_t>(piece) * PIECE;
        fn(begin, std::min(begin + PIECE, count));
    });
}

// Scratch of one float per entry. Never of size 0, and not initialised.
std::unique_ptr<float[]> per_entry(size_t count) { return std::unique_ptr<float[]>(new float[count + 1]); }

// ordered[i] = values[order[i]]
void put_in_order(Context& context, const std::vector<int32_t>& order, const float* values, float* ordered) {
    over_entries(context, order.size(), [&](size_t begin, size_t end) {
        const int32_t* const from = order.data();
        constexpr size_t AT_ONCE = 8;  // loads before a store: the compiler must assume that it changes what they read
        size_t i = begin;
        for (; i + AT_ONCE <= end; i += AT_ONCE) {
            float found[AT_ONCE];
            for (size_t n = 0; n < AT_ONCE; n++) found[n] = values[from[i + n]];
            std::copy(found, found + AT_ONCE, ordered + i);
        }
        for (; i < end; i++) ordered[i] = values[from[i]];
    });
}

// Ask for values in their own order: out of it they come from memory one by one.
void ask_for(const float* values, size_t num_values) {
    constexpr size_t LINE = 64 / sizeof(float);
    for (size_t i = 0; i < num_values; i += LINE) __builtin_prefetch(values + i, 0, 2);
}

int64_t chunks_of(const Tiling& tiling) { return tiling.tile_groups * tiling.row_groups; }

// Whether each value is read once, so that putting it into order first would not pay.
bool is_one_narrow_tile(const Tiling& t) { return t.extent.outer * t.bands * t.stripes == 1 && t.wide == 1; }

void multiply_sparse(Context& context, const Plan& plan, int64_t blocks, const float* values, const float* bias,
                     const float* x, float* y) {
    const Kernels& k = kernels();
    std::unique_ptr<float[]> ordered;
    size_t num_ordered = 0;
    std::vector<Spmm> calls;
    int64_t chunks = 0;
    for (const Pass& pass : plan.passes) {
        const std::vector<int32_t>& order = pass.matrix.order;
        const Tiling tiling = pass.tiling_of(blocks);
        const bool is_looked_up = !order.empty() && is_one_narrow_tile(tiling);
        const float* pass_values = values;
        // The values change with every step, so they are put into the pass's order every time.
        if (!order.empty() && !is_looked_up) {
            if (!ordered) {
                ordered = per_entry(static_cast<size_t>(plan.nnz));
                ask_for(values, static_cast<size_t>(plan.nnz));
            }
            float* const to = ordered.get() + num_ordered;
            put_in_order(context, order, values, to);
            num_ordered += order.size();
            pass_values = to;
        }
        calls.push_back({pass.matrix.view(),
                         tiling,
                         pass_values,
                         is_looked_up ? order.data() : nullptr,
                         bias,
                         x + pass.source_base,
                         pass.source_stride,
                         y + pass.target_base,
                         pass.target_stride,
                         pass.target_row});
        chunks = std::max(chunks, chunks_of(calls.back().tiling));
    }
    // The phases of a stride take turns: each reads a chunk's pixels while they are in the caches.
    context.parallel(chunks, [&](int64_t chunk) {
        for (const Spmm& call : calls) {
            if (chunk < chunks_of(call.tiling)) k.spmm(call, chunk);
        }
    });
}

void multiply_dense(Context& context, const Pass& pass, int64_t blocks, const float* values,
                    const float* bias, const float* x, float* y) {
    const Kernels& k = kernels();
    const Tiling tiling = pass.tiling_of(blocks);
    const Dense call{tiling,
                     pass.taps.rows,
                     pass.taps.count(),
                     pass.taps.block,
                     pass.taps.offset.data(),
                     pass.taps.place.data(),
                     values,
                     pass.taps.row_step,
                     bias,
                     x + pass.source_base,
                     pass.source_stride,
                     y + pass.target_base,
                     pass.target_stride,
                     pass.target_row};
    context.parallel(chunks_of(tiling), [&](int64_t chunk) { k.dense(call, chunk); });
}

void weight_gradient_sparse(Context& context, const Pass& pass, int64_t blocks, const float* x,
                            const float* dy, float* d_values) {
    const Kernels& k = kernels();
    const size_t entries = pass.matrix.entries();
    const Tiling tiling = pass.tiling_of(blocks);
    const size_t tile_groups = static_cast<size_t>(tiling.tile_groups);
    if (tile_groups == 0) {
        std::fill(d_values, d_values + entries, 0.0f);
        return;
    }
    const std::vector<int32_t>& order = pass.matrix.order;
    // A single group of tiles writes its sums into their place, if they come in its order.
    const auto partial = tile_groups == 1 && order.empty() ? nullptr : per_entry(entries * tile_groups);
    const Sddmm call{pass.matrix.view(),
                     tiling,
                     x + pass.source_base,
                     pass.source_stride,
                     dy + pass.target_base,
                     pass.target_stride,
                     pass.target_row,
                     partial ? partial.get() : d_values,
                     static_cast<int64_t>(entries)};
    context.parallel(chunks_of(tiling), [&](int64_t chunk) { k.sddmm(call, chunk); });
    if (!partial) return;
    over_entries(context, entries, [&](size_t begin, size_t end) {
        float* const sums = partial.get();
        for (size_t group = 1; group < tile_groups; group++) {
            const float* from = sums + group * entries;
            for (size_t i = begin; i < end; i++) sums[i] += from[i];
        }
        if (order.empty()) {
            std::copy(sums + begin, sums + end, d_values + begin);
        } else {
            for (size_t i = begin; i < end; i++) d_values[static_cast<size_t>(order[i])] = sums[i];
        }
    });
}

void weight_gradient_dense(Context& context, const Pass& pass, int64_t blocks, const float* x,
                           const float* dy, float* d_values) {
    const Kernels& k = kernels();
    const Tiling tiling = pass.tiling_of(blocks);
    const DenseGrad call{tiling.extent,
                         pass.taps.rows,
                         pass.taps.count(),
                         (pass.taps.count() + k.dense_grad_taps - 1) / k.dense_grad_taps,
                         pass.taps.offset.data(),
                         x + pass.source_base,
                         pass.source_stride,
                         dy + pass.target_base,
                         pass.target_stride,
                         pass.target_row,
                         d_values};
    if (tiling.extent.outer == 0) {
        std::fill_n(d_values, call.rows * call.taps, 0.0f);
        return;
    }
    context.parallel(call.tap_groups, [&](int64_t group) { k.dense_grad(call, group); });
}

// All weights, zero where they are not stored; null if all are.
std::unique_ptr<float[]> filled(const Plan& plan, const float* values) {
    if (plan.is_full()) return nullptr;
    const size_t size = static_cast<size_t>(plan.geometry.weight_size());
    auto full = per_entry(size);
    std::fill(full.get(), full.get() + size, 0.0f);
    for (size_t i = 0; i < plan.indices.size(); i++) full[static_cast<size_t>(plan.indices[i])] = values[i];
    return full;
}

// The plan may be for more blocks.
ConvGeometry geometry_of(const Plan& plan, int64_t blocks) {
    ConvGeometry geometry = plan.geometry;
    geometry.x.blocks = geometry.y.blocks = blocks;
    return geometry;
}

}  // namespace

void multiply(Context& context, const Plan& plan, int64_t blocks, const float* values, const float* bias,
              const float* x, float* y) {
    if (plan.path == Path::SPARSE) {
        multiply_sparse(context, plan, blocks, values, bias, x, y);
        return;
    }
    const auto full = filled(plan, values);
    if (full) values = full.get();
    if (plan.path == Path::WINOGRAD) {
        const ConvGeometry geometry = geometry_of(plan, blocks);
        if (geometry.wants_dx != 0) {
            winograd_input_gradient(context, geometry, values, x, y);
        } else {
            winograd_forward(context, geometry, values, bias, x, y);
        }
        return;
    }
    for (const Pass& pass : plan.passes) multiply_dense(context, pass, blocks, values, bias, x, y);
}

void weight_gradient(Context& context, const Plan& plan, int64_t blocks, const float* x, const float* dy,
                     float* d_values) {
    if (plan.path == Path::SPARSE) {
        weight_gradient_sparse(context, plan.weight_gradient, blocks, x, dy, d_values);
        return;
    }
    const auto full = plan.is_full() ? nullptr : per_entry(static_cast<size_t>(plan.geometry.weight_size()));
    float* const to = full ? full.get() : d_values;
    if (plan.path == Path::WINOGRAD) {
        winograd_weight_gradient(context, geometry_of(plan, blocks), x, dy, to);
    } else {
        weight_gradient_dense(context, plan.weight_gradient, blocks, x, dy, to);
    }
    if (!full) return;
    over_entries(context, plan.indices.size(), [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; i++) d_values[i] = full[static_cast<size_t>(plan.indices[i])];
    });
}

}  // namespace sparsefleet
