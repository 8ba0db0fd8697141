// Host emulation of the Ascend C subset that our kernels use: the name that a kernel includes. See ../README.md.
#pragma once

#include "emulator/attributes.h"
#include "emulator/core.h"
#include "emulator/types.h"

#include "emulator/tensor.h"

#include "emulator/pipe.h"
#include "emulator/sync.h"

#include "emulator/copy.h"
#include "emulator/vector.h"

#include "emulator/cast.h"
#include "emulator/reduce.h"
#include "emulator/select.h"
#include "emulator/tiling.h"
