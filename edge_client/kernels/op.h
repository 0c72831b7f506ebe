// The frame that turns a small struct into an op of ONNX Runtime.
//
// An op is a struct with
//     static constexpr const char* name;              // within the domain "sparsefleet"
//     static constexpr Port inputs[], outputs[];      // its schema
//     explicit Op(const Attributes&);                 // one instance per node
//     void compute(Context&);                         // may run in several threads at once
//     static void infer(ShapeContext&);               // output shapes, as far as they are known
// and custom_op<Op>() is its registration. Inside, errors are thrown as OpError; the frame turns
// every exception into an OrtStatus, so none crosses the C boundary.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_api.h"

namespace sparsefleet {

// What is wrong with the inputs or attributes of a node. The frame puts the op's name in front.
struct OpError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throw OpError(message) unless the condition holds.
inline void require(bool condition, const std::string& message) {
    if (!condition) throw OpError(message);
}

// One input or output in the schema.
struct Port {
    const char* name;
    ElementType type;
    bool is_optional = false;
};

using Shape = std::vector<int64_t>;
std::string to_string(const Shape& shape);

// The attributes of a node. All throw OpError when the value is out of range, the ones without a
// default also when the attribute is missing.
class Attributes {
  public:
    explicit Attributes(const OrtKernelInfo* info) : info_(info) {}
    int64_t integer(const char* name, int64_t lowest, int64_t highest = INT32_MAX) const;  // range-checked
    int64_t integer_or(const char* name, int64_t otherwise, int64_t lowest, int64_t highest) const;
    float real(const char* name) const;

  private:
    const OrtKernelInfo* info_;
};

// An input of one call, borrowed from the runtime until compute() returns.
struct Tensor {
    const char* name;  // of the port
    Shape shape;
    const void* data;

    int64_t size() const;
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

// Throw OpError, naming the tensor and both shapes, unless the shapes are equal.
void require_shape(const Tensor& tensor, const Shape& expected);

// One call of compute().
class Context {
  public:
    Context(OrtKernelContext* context, const Port* inputs, const Port* outputs);

    Tensor input(size_t index) const;  // throws OpError if it is absent
    bool has_input(size_t index) const;

    // The buffer of an output, or null if nobody wants that output (or if it has no elements).
    // Ask once per output; asking is what allocates it.
    template <class T = float>
    T* output(size_t index, const Shape& shape) {
        return static_cast<T*>(raw_output(index, shape));
    }

    // Run fn(0) ... fn(count - 1) on the runtime's threads, in any order; returns when all are done.
    // fn must not throw. Results do not depend on the number of threads as long as what fn(i)
    // writes depends on i alone.
    template <class Function>
    void parallel(int64_t count, const Function& fn) {
        if (count <= 0) return;
        parallel_raw(
            count,
            [](void* user, size_t i) { (*static_cast<const Function*>(user))(static_cast<int64_t>(i)); },
            const_cast<Function*>(&fn));
    }

  private:
    void* raw_output(size_t index, const Shape& shape);
    void parallel_raw(int64_t count, void (*fn)(void*, size_t), void* user);

    OrtKernelContext* context_;
    const Port* input_ports_;
    const Port* output_ports_;
    size_t num_inputs_ = 0;
    size_t num_outputs_ = 0;
};

// A dimension during shape inference: a number, a name, or neither (unknown).
struct Dim {
    int64_t value = -1;
    std::string symbol;
};
using Dims = std::vector<Dim>;

// Shape inference over one node. While the training graph is being built, gradient nodes have no
// attributes and some inputs no shape: everything here is optional, and an op that misses something
// sets nothing. It never fails, because a failure would fail the creation of the whole session.
class ShapeContext {
  public:
    ShapeContext(OrtShapeInferContext* context, const Port* outputs);

    std::optional<Dims> input(size_t index, size_t rank) const;  // nullopt: unknown, or another rank
    std::optional<int64_t> attribute(const char* name) const;
    void set(size_t index, const Dims& dims);  // does nothing if a Dim is unknown

  private:
    OrtShapeInferContext* context_;
    const Port* output_ports_;
    size_t num_inputs_ = 0;
};

// Take over a status: throw OpError with its message if it is one, do nothing if it is null.
void check(OrtStatus* status);
OrtStatus* status_of(const char* op_name, const std::exception& error);

template <class Op>
const OrtCustomOp* custom_op() {
    static const OrtCustomOp op = [] {
        OrtCustomOp c{};
        c.version = ORT_API_VERSION_USED;
        c.GetName = [](const OrtCustomOp*) { return Op::name; };
        c.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
        c.GetInputType = [](const OrtCustomOp*, size_t i) { return static_cast<int>(Op::inputs[i].type); };
        c.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::inputs); };
        c.GetOutputType = [](const OrtCustomOp*, size_t i) { return static_cast<int>(Op::outputs[i].type); };
        c.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Op::outputs); };
        c.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
            return Op::inputs[i].is_optional ? 1 : 0;
        };
        c.GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
            return Op::outputs[i].is_optional ? 1 : 0;
        };
        c.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
        c.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
        c.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
        c.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
        c.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
        c.GetStartVersion = [](const OrtCustomOp*) { return 1; };
        c.GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
        c.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                              void** kernel) -> OrtStatus* {
            try {
                *kernel = new Op(Attributes(info));
                return nullptr;
            } catch (const std::exception& error) {
                return status_of(Op::name, error);
            }
        };
        c.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
            try {
                Context call(context, Op::inputs, Op::outputs);
                static_cast<Op*>(kernel)->compute(call);
                return nullptr;
            } catch (const std::exception& error) {
                return status_of(Op::name, error);
            }
        };
        c.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
        c.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatus* {
            try {
                ShapeContext shapes(context, Op::outputs);
                Op::infer(shapes);
            } catch (const std::exception&) {
                // Unknown stays unknown; compute() says what is wrong when the node runs.
            }
            return nullptr;
        };
        return c;
    }();
    return &op;
}

}  // namespace sparsefleet
