#pragma once

// Where the structs of the C interface have their members, for callers in other languages to check
// their own description against: lines of "Struct SIZE" and "Struct.member OFFSET".
extern "C" const char* moh_cuda_layout();
