// Host emulation of the Ascend C subset that our kernels use: the name that a kernel includes. See ../README.md.
#pragma once

#include "emulator/copy.h"
#include "emulator/pipe.h"
#include "emulator/reduce.h"
