// The words of the device language that mean nothing on a host, and the macros that tell a kernel where it runs.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define __NPU_ARCH__ 2201  // Atlas A2 and A3: vector cores that are separate from cube cores
#define __CCE_AICORE__ 220
#define ASCEND_IS_AIV constexpr(true)
#define ASCEND_IS_AIC constexpr(false)

using GM_ADDR = uint8_t*;

enum pipe_t : uint8_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL, PIPE_FIX };
enum event_t : int8_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };
using TEventID = int8_t;
