#include "op.h"

#include <numeric>

#include "pages.h"

namespace sparsefleet {
namespace {

// Owns a shape that the runtime has handed over to us.
struct TypeAndShape {
    OrtTensorTypeAndShapeInfo* info = nullptr;

    TypeAndShape() = default;
    TypeAndShape(const TypeAndShape&) = delete;
    TypeAndShape& operator=(const TypeAndShape&) = delete;
    ~TypeAndShape() {
        if (info != nullptr) ort().release_tensor_type_and_shape_info(info);
    }
};

Shape shape_of(const OrtTensorTypeAndShapeInfo* info) {
    size_t rank = 0;
    check(ort().get_dimensions_count(info, &rank));
    Shape dims(rank);
    check(ort().get_dimensions(info, dims.data(), rank));
    return dims;
}

size_t bytes_of(ElementType type) {
    switch (type) {
        case ElementType::UINT8:
            return 1;
        case ElementType::UINT16:
            return 2;
        case ElementType::INT64:
            return 8;
        case ElementType::FLOAT:
        case ElementType::INT32:
            break;
    }
    return 4;
}

// True for success. Releases the status: some questions may fail without that being an error.
bool succeeded(OrtStatus* status) {
    if (status == nullptr) return true;
    ort().release_status(status);
    return false;
}

int64_t in_range(const char* name, int64_t value, int64_t lowest, int64_t highest) {
    require(value >= lowest && value <= highest,
            std::string("attribute ") + name + " is " + std::to_string(value) + ", must be " +
                std::to_string(lowest) + " to " + std::to_string(highest));
    return value;
}

}  // namespace

std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); i++) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return text + "]";
}

void check(OrtStatus* status) {
    if (status == nullptr) return;
    const std::string message = ort().get_error_message(status);
    ort().release_status(status);
    throw OpError(message);
}

OrtStatus* status_of(const char* op_name, const std::exception& error) {
    const bool caller_is_wrong = dynamic_cast<const OpError*>(&error) != nullptr;
    const std::string message = std::string("sparsefleet ") + op_name + ": " + error.what();
    return ort().create_status(caller_is_wrong ? ORT_INVALID_ARGUMENT_CODE : ORT_FAIL_CODE, message.c_str());
}

int64_t Attributes::integer(const char* name, int64_t lowest, int64_t highest) const {
    int64_t value = 0;
    require(succeeded(ort().kernel_info_get_attribute_int64(info_, name, &value)),
            std::string("integer attribute ") + name + " is missing");
    return in_range(name, value, lowest, highest);
}

int64_t Attributes::integer_or(const char* name, int64_t otherwise, int64_t lowest, int64_t highest) const {
    int64_t value = 0;
    const bool is_given = succeeded(ort().kernel_info_get_attribute_int64(info_, name, &value));
    return is_given ? in_range(name, value, lowest, highest) : otherwise;
}

float Attributes::real(const char* name) const {
    float value = 0.0f;
    require(succeeded(ort().kernel_info_get_attribute_float(info_, name, &value)),
            std::string("float attribute ") + name + " is missing");
    return value;
}

int64_t Tensor::size() const {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1},
                           [](int64_t a, int64_t b) { return a * b; });
}

void require_shape(const Tensor& tensor, const Shape& expected) {
    require(tensor.shape == expected, std::string(tensor.name) + " has shape " + to_string(tensor.shape) +
                                          ", expected " + to_string(expected));
}

Context::Context(OrtKernelContext* context, const Port* inputs, const Port* outputs)
    : context_(context), input_ports_(inputs), output_ports_(outputs) {
    check(ort().kernel_context_get_input_count(context, &num_inputs_));
    check(ort().kernel_context_get_output_count(context, &num_outputs_));
}

bool Context::has_input(size_t index) const {
    if (index >= num_inputs_) return false;
    const OrtValue* value = nullptr;
    check(ort().kernel_context_get_input(context_, index, &value));
    return value != nullptr;
}

Tensor Context::input(size_t index) const {
    require(has_input(index), std::string("input ") + input_ports_[index].name + " is missing");
    const OrtValue* value = nullptr;
    check(ort().kernel_context_get_input(context_, index, &value));
    TypeAndShape type;
    check(ort().get_tensor_type_and_shape(value, &type.info));
    int element_type = 0;
    check(ort().get_tensor_element_type(type.info, &element_type));
    require(element_type == static_cast<int>(input_ports_[index].type),
            std::string("input ") + input_ports_[index].name + " has element type " +
                std::to_string(element_type));
    void* data = nullptr;
    check(ort().get_tensor_mutable_data(const_cast<OrtValue*>(value), &data));
    return Tensor{input_ports_[index].name, shape_of(type.info), data};
}

void* Context::raw_output(size_t index, const Shape& shape) {
    if (index >= num_outputs_) return nullptr;
    OrtValue* value = nullptr;
    check(ort().kernel_context_get_output(context_, index, shape.data(), shape.size(), &value));
    if (value == nullptr) {
        require(output_ports_[index].is_optional,
                std::string("output ") + output_ports_[index].name + " is missing");
        return nullptr;
    }
    void* data = nullptr;
    check(ort().get_tensor_mutable_data(value, &data));
    want_large_pages(data, static_cast<size_t>(Tensor{"", shape, data}.size()) * bytes_of(output_ports_[index].type));
    return data;
}

void Context::parallel_raw(int64_t count, void (*fn)(void*, size_t), void* user) {
    if (count == 1) return fn(user, 0);
    // num_batch 0: threads take one index at a time, so an uneven mask does not leave them idle.
    check(ort().kernel_context_parallel_for(context_, fn, static_cast<size_t>(count), 0, user));
}

ShapeContext::ShapeContext(OrtShapeInferContext* context, const Port* outputs)
    : context_(context), output_ports_(outputs) {
    check(ort().shape_infer_context_get_input_count(context, &num_inputs_));
}

std::optional<Dims> ShapeContext::input(size_t index, size_t rank) const {
    if (index >= num_inputs_) return std::nullopt;
    OrtTensorTypeAndShapeInfo* info = nullptr;  // borrowed: the inference context releases it
    if (!succeeded(ort().shape_infer_context_get_input_type_shape(context_, index, &info)))
        return std::nullopt;
    if (info == nullptr) return std::nullopt;
    const Shape shape = shape_of(info);  // an unknown shape is reported as rank 0
    if (shape.size() != rank) return std::nullopt;
    std::vector<const char*> symbols(rank);
    check(ort().get_symbolic_dimensions(info, symbols.data(), rank));
    Dims dims(rank);
    for (size_t i = 0; i < rank; i++) {
        dims[i].value = shape[i] >= 0 ? shape[i] : -1;
        if (shape[i] < 0 && symbols[i] != nullptr) dims[i].symbol = symbols[i];
    }
    return dims;
}

std::optional<int64_t> ShapeContext::attribute(const char* name) const {
    const OrtOpAttr* attribute = nullptr;
    if (!succeeded(ort().shape_infer_context_get_attribute(context_, name, &attribute))) return std::nullopt;
    if (attribute == nullptr) return std::nullopt;
    int64_t value = 0;
    size_t size = 0;
    if (!succeeded(ort().read_op_attr(attribute, ORT_ATTRIBUTE_INT, &value, sizeof value, &size))) {
        return std::nullopt;
    }
    return value;
}

// The runtime does not check the index against the outputs that the node really has (it writes out of
// bounds), and does not tell how many there are. So ops set only outputs that every node has.
void ShapeContext::set(size_t index, const Dims& dims) {
    Shape shape(dims.size());
    std::vector<const char*> symbols(dims.size());
    for (size_t i = 0; i < dims.size(); i++) {
        // The runtime has no way to say "unknown": -1 without a name would become a real -1.
        if (dims[i].value < 0 && dims[i].symbol.empty()) return;
        shape[i] = dims[i].value;
        symbols[i] = dims[i].value < 0 ? dims[i].symbol.c_str() : "";
    }
    TypeAndShape type;
    check(ort().create_tensor_type_and_shape_info(&type.info));
    check(ort().set_tensor_element_type(type.info, static_cast<int>(output_ports_[index].type)));
    check(ort().set_dimensions(type.info, shape.data(), shape.size()));
    check(ort().set_symbolic_dimensions(type.info, symbols.data(), symbols.size()));
    check(ort().shape_infer_context_set_output_type_shape(context_, index, type.info));
}

}  // namespace sparsefleet
