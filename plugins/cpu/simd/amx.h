// Whether this process may compute in the processor's matrix registers.
#pragma once

namespace moh::cpu {

// The processor has bfloat16 products in AMX, and the operating system lets this process use them.
// Asks for that permission, once: it belongs to the process, and stays.
bool may_use_amx_bfloat16();

}  // namespace moh::cpu
