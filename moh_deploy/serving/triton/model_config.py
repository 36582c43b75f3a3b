"""Read and write `config.pbtxt`: Triton's ModelConfig in the text format of protocol buffers.

The fields are listed by type and name. Text has no field numbers, so they count from one.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

from moh_deploy.errors import PackageError

ConfigMessage: TypeAlias = Any
"""A protobuf message: classes that are made of a table have no types for mypy."""


@functools.cache
def config_class() -> ConfigMessage:
    """Return the class of `ModelConfig` messages, made of the table below."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # proto2 keeps a 0 that was written apart from a field that is absent.
    file = descriptor_pb2.FileDescriptorProto(name="config", package="triton", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    for enum_name, values in _ENUMS.items():
        enum = file.enum_type.add(name=enum_name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, declared in enumerate(filter(None, fields.split(", ")), 1):
            type_name, name = declared.split()
            field = message.field.add(name=name, number=number)
            is_repeated = type_name.endswith("*")
            field.label = field_type.LABEL_REPEATED if is_repeated else field_type.LABEL_OPTIONAL
            type_name = type_name.removesuffix("*")
            if type_name in _MESSAGES or type_name in _ENUMS:
                field.type_name = f".triton.{type_name}"
            else:
                field.type = field_type.Type.Value(f"TYPE_{type_name.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))


def parse_config(text: str) -> ConfigMessage:
    """Parse the text of a `config.pbtxt`.

    Raises:
        PackageError: It is no such text, or has a key that Triton does not know, which keeps it
            from loading the model. The message has line and column.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, config_class()())
    except text_format.ParseError as error:
        # Its own text begins with both numbers, and may quote the whole line.
        reason = str(error).partition(" : ")[2].rstrip(".")[:300]
        place = f"line {error.GetLine()}, column {error.GetColumn()}"
        raise PackageError(f"{place}: {reason}.") from None


def enum_name(message: ConfigMessage, field: str) -> str:
    """Return the name of an enum field's value: `TYPE_FP32`."""
    values = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(values[getattr(message, field)].name)


_MESSAGES = {
    "ModelConfig": "string name, string platform, string backend, string runtime,"
    " VersionPolicy version_policy, int32 max_batch_size, Input* input, Output* output,"
    " BatchInput* batch_input, BatchOutput* batch_output, Optimization optimization,"
    " DynamicBatching dynamic_batching, SequenceBatching sequence_batching,"
    " Ensembling ensemble_scheduling, InstanceGroup* instance_group,"
    " string default_model_filename, TextEntry* cc_model_filenames, TextEntry* metric_tags,"
    " ParameterEntry* parameters, Warmup* model_warmup, Operations model_operations,"
    " TransactionPolicy model_transaction_policy, Agents model_repository_agents,"
    " Switch response_cache, Metrics model_metrics",
    "Input": "string name, DataType data_type, Format format, int64* dims, Reshape reshape,"
    " bool is_shape_tensor, bool allow_ragged_batch, bool optional, bool is_non_linear_format_io",
    "Output": "string name, DataType data_type, int64* dims, Reshape reshape,"
    " string label_filename, bool is_shape_tensor, bool is_non_linear_format_io",
    "Reshape": "int64* shape",
    "BatchInput": "BatchInputKind kind, string* target_name, DataType data_type,"
    " string* source_input",
    "BatchOutput": "string* target_name, BatchOutputKind kind, string* source_input",
    "VersionPolicy": "Latest latest, All all, Specific specific",
    "Latest": "uint32 num_versions",
    "All": "",
    "Specific": "int64* versions",
    "InstanceGroup": "string name, InstanceKind kind, int32 count, RateLimiter rate_limiter,"
    " int32* gpus, SecondaryDevice* secondary_devices, string* profile, bool passive,"
    " string host_policy",
    "SecondaryDevice": "SecondaryDeviceKind kind, int64 device_id",
    "RateLimiter": "Resource* resources, uint32 priority",
    "Resource": "string name, bool global, uint32 count",
    "DynamicBatching": "int32* preferred_batch_size, uint64 max_queue_delay_microseconds,"
    " bool preserve_ordering, uint64 priority_levels, uint64 default_priority_level,"
    " QueuePolicy default_queue_policy, QueuePolicyEntry* priority_queue_policy",
    "QueuePolicy": "TimeoutAction timeout_action, uint64 default_timeout_microseconds,"
    " bool allow_timeout_override, uint32 max_queue_size",
    "QueuePolicyEntry": "uint64 key, QueuePolicy value",
    "SequenceBatching": "Direct direct, Oldest oldest, uint64 max_sequence_idle_microseconds,"
    " ControlInput* control_input, State* state, bool iterative_sequence",
    "Direct": "uint64 max_queue_delay_microseconds, float minimum_slot_utilization",
    "Oldest": "int32 max_candidate_sequences, int32* preferred_batch_size,"
    " uint64 max_queue_delay_microseconds, bool preserve_ordering",
    "ControlInput": "string name, Control* control",
    "Control": "ControlKind kind, int32* int32_false_true, float* fp32_false_true,"
    " bool* bool_false_true, DataType data_type",
    "State": "string input_name, string output_name, DataType data_type, int64* dims,"
    " InitialState* initial_state, bool use_same_buffer_for_input_output,"
    " bool use_growable_memory",
    "InitialState": "DataType data_type, int64* dims, bool zero_data, string data_file,"
    " string name",
    "Ensembling": "Step* step, uint32 max_inflight_requests",
    "Step": "string model_name, int64 model_version, TextEntry* input_map,"
    " TextEntry* output_map, string model_namespace",
    "Optimization": "Graph graph, Priority priority, Cuda cuda,"
    " Accelerators execution_accelerators, Switch input_pinned_memory,"
    " Switch output_pinned_memory, uint32 gather_kernel_buffer_threshold, bool eager_batching",
    "Graph": "int32 level",
    "Cuda": "bool graphs, bool busy_wait_events, GraphSpec* graph_spec, bool output_copy_stream",
    "GraphSpec": "int32 batch_size, ShapeEntry* input, LowerBound graph_lower_bound",
    "LowerBound": "int32 batch_size, ShapeEntry* input",
    "ShapeEntry": "string key, Shape value",
    "Shape": "int64* dim",
    "Accelerators": "Named* gpu_execution_accelerator, Named* cpu_execution_accelerator",
    "Agents": "Named* agents",
    "Named": "string name, TextEntry* parameters",
    "Warmup": "string name, uint32 batch_size, WarmupEntry* inputs, uint32 count",
    "WarmupEntry": "string key, WarmupInput value",
    "WarmupInput": "DataType data_type, int64* dims, bool zero_data, bool random_data,"
    " string input_data_file",
    "Operations": "string* op_library_filename",
    "TransactionPolicy": "bool decoupled",
    "Metrics": "MetricControl* metric_control",
    "MetricControl": "MetricIdentifier metric_identifier, Histogram histogram_options",
    "MetricIdentifier": "string family",
    "Histogram": "double* buckets",
    "ParameterEntry": "string key, Parameter value",
    "Parameter": "string string_value",
    "Switch": "bool enable",
    "TextEntry": "string key, string value",
}

_ENUMS = {
    "DataType": "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8"
    " TYPE_INT16 TYPE_INT32 TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16",
    "Format": "FORMAT_NONE FORMAT_NHWC FORMAT_NCHW",
    "InstanceKind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
    "SecondaryDeviceKind": "KIND_NVDLA",
    "BatchInputKind": "BATCH_ELEMENT_COUNT BATCH_ACCUMULATED_ELEMENT_COUNT"
    " BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO BATCH_MAX_ELEMENT_COUNT_AS_SHAPE BATCH_ITEM_SHAPE"
    " BATCH_ITEM_SHAPE_FLATTEN",
    "BatchOutputKind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
    "TimeoutAction": "REJECT DELAY",
    "ControlKind": "CONTROL_SEQUENCE_START CONTROL_SEQUENCE_READY CONTROL_SEQUENCE_END"
    " CONTROL_SEQUENCE_CORRID",
    "Priority": "PRIORITY_DEFAULT PRIORITY_MAX PRIORITY_MIN",
}
