// The few entries of ONNX Runtime's C API that this library uses, declared by hand.
//
// No wheel carries onnxruntime_c_api.h, and Raspberry Pi OS bookworm and Jetson's Ubuntu do not
// package it. The ABI allows doing without: OrtApi is a table of function pointers that only ever
// grows at its end, so an entry is found by its index, and OrtCustomOp is a plain struct.
// load_api() refuses a runtime whose table is older than API 17 (onnxruntime 1.17).
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Opaque, owned by the runtime.
struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;

struct OrtApi;  // never dereferenced as a struct: see load_api()

struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version);  // null if the runtime is older than `version`
    const char* (*GetVersionString)();          // "1.19.2"; owned by the runtime
};

// The schema and the callbacks of one op. Field order is ABI. The runtime reads as many fields as
// `version` promises; the last four are newer than 17 and stay null.
struct OrtCustomOp {
    uint32_t version;  // API version this struct was written for
    void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);  // unused: V2 below
    const char* (*GetName)(const OrtCustomOp*);
    const char* (*GetExecutionProviderType)(const OrtCustomOp*);  // null means CPU
    int (*GetInputType)(const OrtCustomOp*, size_t);              // an ElementType
    size_t (*GetInputTypeCount)(const OrtCustomOp*);
    int (*GetOutputType)(const OrtCustomOp*, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp*);
    void (*KernelCompute)(void*, OrtKernelContext*);  // unused: V2 below
    void (*KernelDestroy)(void*);
    int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);  // 0 required, 1 optional
    int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp*, size_t);  // 0: the default memory
    int (*GetVariadicInputMinArity)(const OrtCustomOp*);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
    OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
    OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
    int (*GetStartVersion)(const OrtCustomOp*);
    int (*GetEndVersion)(const OrtCustomOp*);
    void* reserved[4];  // GetMayInplace ... ReleaseAliasMap, API 18
};

}  // extern "C"

namespace sparsefleet {

constexpr uint32_t ORT_API_VERSION_USED = 17;

// ONNXTensorElementDataType, the five that our ops use.
enum class ElementType : int { FLOAT = 1, UINT8 = 2, UINT16 = 4, INT32 = 6, INT64 = 7 };

// OrtErrorCode and OrtOpAttrType, the ones we use.
constexpr int ORT_FAIL_CODE = 1;
constexpr int ORT_INVALID_ARGUMENT_CODE = 2;
constexpr int ORT_ATTRIBUTE_INT = 1;

// The entries by name. Every function returning OrtStatus* returns null for success; a status that
// is not null belongs to the caller, who releases it or returns it to the runtime.
struct Api {
    OrtStatus* (*create_status)(int code, const char* message);
    const char* (*get_error_message)(const OrtStatus*);
    OrtStatus* (*create_custom_op_domain)(const char* domain, OrtCustomOpDomain** out);
    OrtStatus* (*custom_op_domain_add)(OrtCustomOpDomain*, const OrtCustomOp*);
    OrtStatus* (*add_custom_op_domain)(OrtSessionOptions*, OrtCustomOpDomain*);
    OrtStatus* (*get_tensor_mutable_data)(OrtValue*, void** out);
    OrtStatus* (*create_tensor_type_and_shape_info)(OrtTensorTypeAndShapeInfo** out);
    OrtStatus* (*set_tensor_element_type)(OrtTensorTypeAndShapeInfo*, int type);
    OrtStatus* (*set_dimensions)(OrtTensorTypeAndShapeInfo*, const int64_t* dims, size_t count);
    OrtStatus* (*get_tensor_element_type)(const OrtTensorTypeAndShapeInfo*, int* out);
    OrtStatus* (*get_dimensions_count)(const OrtTensorTypeAndShapeInfo*, size_t* out);
    OrtStatus* (*get_dimensions)(const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t count);
    OrtStatus* (*get_symbolic_dimensions)(const OrtTensorTypeAndShapeInfo*, const char** names, size_t count);
    OrtStatus* (*get_tensor_type_and_shape)(const OrtValue*, OrtTensorTypeAndShapeInfo** out);
    OrtStatus* (*kernel_info_get_attribute_float)(const OrtKernelInfo*, const char* name, float* out);
    OrtStatus* (*kernel_info_get_attribute_int64)(const OrtKernelInfo*, const char* name, int64_t* out);
    OrtStatus* (*kernel_context_get_input_count)(const OrtKernelContext*, size_t* out);
    OrtStatus* (*kernel_context_get_output_count)(const OrtKernelContext*, size_t* out);
    OrtStatus* (*kernel_context_get_input)(const OrtKernelContext*, size_t index, const OrtValue** out);
    OrtStatus* (*kernel_context_get_output)(OrtKernelContext*, size_t index, const int64_t* dims,
                                            size_t count, OrtValue** out);
    void (*release_status)(OrtStatus*);
    void (*release_tensor_type_and_shape_info)(OrtTensorTypeAndShapeInfo*);
    void (*release_custom_op_domain)(OrtCustomOpDomain*);
    OrtStatus* (*shape_infer_context_get_input_count)(const OrtShapeInferContext*, size_t* out);
    // The info stays the context's own, unlike that of get_tensor_type_and_shape: never release it.
    OrtStatus* (*shape_infer_context_get_input_type_shape)(const OrtShapeInferContext*, size_t index,
                                                           OrtTensorTypeAndShapeInfo** out);
    OrtStatus* (*shape_infer_context_get_attribute)(const OrtShapeInferContext*, const char* name,
                                                    const OrtOpAttr** out);
    OrtStatus* (*shape_infer_context_set_output_type_shape)(const OrtShapeInferContext*, size_t index,
                                                            const OrtTensorTypeAndShapeInfo*);
    OrtStatus* (*set_symbolic_dimensions)(OrtTensorTypeAndShapeInfo*, const char** names, size_t count);
    OrtStatus* (*read_op_attr)(const OrtOpAttr*, int type, void* data, size_t length, size_t* out);
    OrtStatus* (*kernel_context_parallel_for)(const OrtKernelContext*, void (*fn)(void*, size_t),
                                              size_t total, size_t num_batch, void* user_data);
};

// Fill the table that ort() returns. Must succeed once before anything else here is called; calling
// it again is harmless. Returns null, or a status of the runtime's when the runtime is too old.
// Crashes only for a runtime without CreateStatus, which no runtime has been since 1.0.
OrtStatus* load_api(const OrtApiBase* base);

const Api& ort();

}  // namespace sparsefleet
