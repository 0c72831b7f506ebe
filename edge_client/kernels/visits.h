// The order in which a sparse pass visits its entries: rows within column blocks, the longest rows first.
#pragma once

#include <algorithm>

#include "plan.h"
#include "windows.h"

namespace sparsefleet {

// The channels of a matrix, cut into column blocks. A row's entries have them in this order: every step-th, beginning with
// channel 0, then with channel 1, and so on.
struct Columns {
    int64_t channels, per_block, step;

    // `plane` is the distance of channels in floats. In maps of 32x32 with a halo of one each channel's pixels lie one line
    // further in the sets of L1 than those of the channel before. A row of a large tile meets ten lines under a 3x3 kernel,
    // and every other row the same sets: twenty, of which an L1 of eight or twelve ways drives some out while other sets
    // stay empty. Smaller tiles fit, and would be up to a tenth slower in another order.
    Columns(int64_t num_channels, int64_t num_per_block, int64_t plane)
        : channels(num_channels), per_block(num_per_block), step(1) {
        constexpr int64_t SETS = 64, LINES_APART = 5, LARGE_TILE = 16;
        static_assert(LANES * sizeof(float) == 64, "a pixel is a line");
        const int64_t lines = plane / LANES;
        const auto are_apart = [&](int64_t every) {
            const int64_t shift = every * lines % SETS;
            return std::min(shift, SETS - shift) >= LINES_APART;
        };
        if (kernels().spmm_pixels < LARGE_TILE || lines < SETS || lines % SETS == 0) return;
        while (!are_apart(step)) step++;
    }

    int64_t blocks() const { return ceil_div(channels, per_block); }
    int64_t block_of(int64_t channel) const {
        const int64_t turn = channel % step;
        const int64_t before = turn * (channels / step) + std::min(turn, channels % step);
        return (before + channel / step) / per_block;
    }
};

// How an entry's position in the values follows from its place in the matrix: not at all, or it ascends with rows and
// channels. If rows have the channels in that order too, a visit's values are consecutive where they are.
enum class Positions { IN_ANY_ORDER, ASCENDING };

// Lay the entries out in the order of their visits. each(emit) calls emit(row, channel, offset, position) once per entry; it
// is run several times, first to count.
template <class Each>
void build(SparseMatrix& m, int64_t row_groups, int64_t rows, const Columns& columns, Positions positions,
           const Each& each) {
    const bool in_place = positions == Positions::ASCENDING && columns.step == 1;
    m.col_blocks = columns.blocks();
    const auto cell = [&](int64_t row, int64_t block) { return static_cast<size_t>(row * m.col_blocks + block); };
    std::vector<int32_t> count(static_cast<size_t>(rows * m.col_blocks), 0);
    each([&](int64_t row, int64_t channel, int64_t, int64_t) { count[cell(row, columns.block_of(channel))]++; });

    std::vector<int32_t> next(count.size());  // where the next entry of a cell goes
    m.first.assign(1, 0);
    m.visits.assign(1, {0, 0, 0});
    std::vector<int32_t> visited;
    int32_t end = 0;
    for (int64_t group = 0; group < row_groups; group++) {
        for (int64_t block = 0; block < m.col_blocks; block++) {
            const auto count_of = [&](int32_t row) { return count[cell(row, block)]; };
            visited.clear();
            for (int64_t row = rows * group / row_groups; row < rows * (group + 1) / row_groups; row++) {
                if (block == 0 || count_of(static_cast<int32_t>(row)) > 0) {
                    visited.push_back(static_cast<int32_t>(row));
                }
            }
            std::stable_sort(visited.begin(), visited.end(),
                             [&](int32_t a, int32_t b) { return count_of(a) > count_of(b); });
            for (const int32_t row : visited) {
                next[cell(row, block)] = end;
                end += count_of(row);
                m.visits.push_back({row, end, next[cell(row, block)]});
            }
            m.first.push_back(static_cast<int32_t>(m.visits.size()) - 1);
        }
    }
    m.visits.insert(m.visits.end(), static_cast<size_t>(VISITS_AHEAD), Visit{0, end, 0});
    m.offset.resize(static_cast<size_t>(end + OFFSETS_AHEAD));
    m.order.resize(in_place ? 0 : static_cast<size_t>(end));
    for (int64_t turn = 0; turn < columns.step; turn++) {
        each([&](int64_t row, int64_t channel, int64_t offset, int64_t position) {
            if (channel % columns.step != turn) return;
            const auto entry = static_cast<size_t>(next[cell(row, columns.block_of(channel))]++);
            m.offset[entry] = static_cast<int32_t>(offset);
            if (!in_place) m.order[entry] = static_cast<int32_t>(position);
        });
    }
    if (!in_place) return;
    // The rows are stored one after the other, so a cell's values begin where the cells before it end.
    std::vector<int32_t>& first_value = next;
    int32_t position = 0;
    for (size_t i = 0; i < count.size(); i++) {
        first_value[i] = position;
        position += count[i];
    }
    for (size_t segment = 0; segment + 1 < m.first.size(); segment++) {
        const int64_t block = static_cast<int64_t>(segment) % m.col_blocks;
        for (int32_t i = m.first[segment]; i < m.first[segment + 1]; i++) {
            Visit& visit = m.visits[static_cast<size_t>(i) + 1];
            visit.value = first_value[cell(visit.row, block)];
        }
    }
}

}  // namespace sparsefleet
