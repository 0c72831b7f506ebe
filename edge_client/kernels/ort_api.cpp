#include "ort_api.h"

#include <string>

namespace sparsefleet {
namespace {

using AnyFunction = void (*)();

Api api;  // written once by load_api(), then only read

template <class Function>
void take(const AnyFunction* table, size_t index, Function& out, bool& complete) {
    out = reinterpret_cast<Function>(table[index]);
    complete = complete && out != nullptr;
}

// The indices were checked with offsetof on the header of API 21.
bool fill(const AnyFunction* table) {
    bool complete = true;
    const auto entry = [&](size_t index, auto& out) { take(table, index, out, complete); };
    entry(0, api.create_status);
    entry(2, api.get_error_message);
    entry(26, api.create_custom_op_domain);
    entry(27, api.custom_op_domain_add);
    entry(28, api.add_custom_op_domain);
    entry(51, api.get_tensor_mutable_data);
    entry(57, api.create_tensor_type_and_shape_info);
    entry(58, api.set_tensor_element_type);
    entry(59, api.set_dimensions);
    entry(60, api.get_tensor_element_type);
    entry(61, api.get_dimensions_count);
    entry(62, api.get_dimensions);
    entry(63, api.get_symbolic_dimensions);
    entry(65, api.get_tensor_type_and_shape);
    entry(85, api.kernel_info_get_attribute_float);
    entry(86, api.kernel_info_get_attribute_int64);
    entry(88, api.kernel_context_get_input_count);
    entry(89, api.kernel_context_get_output_count);
    entry(90, api.kernel_context_get_input);
    entry(91, api.kernel_context_get_output);
    entry(93, api.release_status);
    entry(99, api.release_tensor_type_and_shape_info);
    entry(101, api.release_custom_op_domain);
    entry(267, api.shape_infer_context_get_input_count);
    entry(268, api.shape_infer_context_get_input_type_shape);
    entry(269, api.shape_infer_context_get_attribute);
    entry(270, api.shape_infer_context_set_output_type_shape);
    entry(271, api.set_symbolic_dimensions);
    entry(272, api.read_op_attr);
    entry(274, api.kernel_context_parallel_for);
    return complete;
}

}  // namespace

OrtStatus* load_api(const OrtApiBase* base) {
    const OrtApi* table = base->GetApi(ORT_API_VERSION_USED);
    if (table == nullptr) {
        // Entry 0 exists since the first release, so even an old runtime can be told what is wrong.
        const OrtApi* oldest = base->GetApi(1);
        if (oldest == nullptr) return nullptr;
        auto create_status =
            reinterpret_cast<decltype(Api::create_status)>(*reinterpret_cast<const AnyFunction*>(oldest));
        const std::string message =
            std::string("sparsefleet needs onnxruntime 1.17 or newer, this is ") + base->GetVersionString();
        return create_status(ORT_FAIL_CODE, message.c_str());
    }
    if (!fill(reinterpret_cast<const AnyFunction*>(table))) {
        return api.create_status(ORT_FAIL_CODE, "sparsefleet: this onnxruntime lacks entries of API 17");
    }
    return nullptr;
}

const Api& ort() { return api; }

}  // namespace sparsefleet
