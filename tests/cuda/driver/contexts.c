/* The device, its primary context, and each thread's stack of contexts. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STACK = 64 };
static __thread Context *stack[STACK];
static __thread int depth;

Context *sim_current(void) { return depth ? stack[depth - 1] : NULL; }

/* For tests: how many contexts the calling thread has pushed and not popped. */
int sim_depth(void) { return depth; }

CUresult cuInit(unsigned int flags)
{
    ENTER_WITHOUT_CONTEXT();
    world.initialised = true;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDriverGetVersion(int *version)
{
    ENTER_WITHOUT_CONTEXT();
    *version = CUDA_VERSION;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGetCount(int *count)
{
    ENTER_WITHOUT_CONTEXT();
    *count = 1;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER_WITHOUT_CONTEXT();
    *device = 0;
    LEAVE(ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    snprintf(name, (size_t)size, "Simulated GPU");
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    *major = 8, *minor = 7;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    *bytes = (size_t)8 << 30;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_INTEGRATED:
        *value = world.integrated;
        break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
        *value = 1;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = 8;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = 7;
        break;
    default:
        *value = 0;
    }
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    if (!world.primary) {
        world.primary = calloc(1, sizeof *world.primary);
        world.primary->next = world.contexts;
        world.contexts = world.primary;
        world.primary->alive = true;
    }
    world.primary->retained++;
    *context = (CUcontext)world.primary;
    LEAVE(CUDA_SUCCESS);
}

/* Where the last owner lets go, the context ends with everything in it, and the next retain makes another. */
CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    ENTER_WITHOUT_CONTEXT();
    if (!world.primary) {
        sim_problem("released too often", "the primary context was released more often than retained");
        LEAVE(CUDA_ERROR_INVALID_CONTEXT);
    }
    if (--world.primary->retained == 0) {
        sim_count_leaks(world.primary);
        world.primary->alive = false;
        world.primary = NULL;
        world.sticky = CUDA_SUCCESS;
    }
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxPushCurrent(CUcontext context)
{
    ENTER_WITHOUT_CONTEXT();
    if (depth == STACK) LEAVE(CUDA_ERROR_INVALID_VALUE);
    if (!((Context *)context)->alive) {
        sim_problem("dead context", "a context that was destroyed was pushed");
        LEAVE(CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }
    stack[depth++] = (Context *)context;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxPopCurrent(CUcontext *context)
{
    ENTER_WITHOUT_CONTEXT();
    if (!depth) {
        sim_problem("popped too often", "a context was popped where none is current");
        LEAVE(CUDA_ERROR_INVALID_CONTEXT);
    }
    CUcontext popped = (CUcontext)stack[--depth];
    if (context) *context = popped;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    ENTER_WITHOUT_CONTEXT();
    *context = (CUcontext)sim_current();
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    ENTER_WITHOUT_CONTEXT();
    if (depth) depth--;
    if (context) stack[depth++] = (Context *)context;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    ENTER();
    *device = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetApiVersion(CUcontext context, unsigned int *version)
{
    ENTER();
    *version = CUDA_VERSION;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    ENTER();
    *least = 0, *greatest = -5;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxSynchronize(void)
{
    ENTER();
    if (sim_capturing()) LEAVE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    sim_finish_all(false);
    LEAVE(world.sticky);
}

/* Everything that is still alive when its context ends was forgotten by somebody. */
void sim_count_leaks(Context *owner)
{
    static const char *kinds[] = {"device memory", "managed memory", "page-locked memory", "registered memory"};
    for (Block *b = world.blocks; b; b = b->next)
        if (b->live && b->owner == owner) {
            sim_problem("leak", "%zu bytes of %s", b->size, kinds[b->kind]);
            b->live = false;
        }
    for (Stream *s = world.streams; s; s = s->next)
        if (s->live && s->index && s->owner == owner) {
            sim_problem("leak", "a stream");
            s->live = false;
        }
    for (Event *e = world.events; e; e = e->next)
        if (e->live && e->owner == owner) {
            sim_problem("leak", "an event");
            e->live = false;
        }
    for (Graph *g = world.graphs; g; g = g->next)
        if (g->live && g->owner == owner) {
            sim_problem("leak", "a graph");
            g->live = false;
        }
    for (GraphExec *g = world.executables; g; g = g->next)
        if (g->live && g->owner == owner) {
            sim_problem("leak", "an executable graph");
            g->live = false;
        }
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    switch (error) {
    case CUDA_SUCCESS: *text = "no error"; break;
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
    case CUDA_ERROR_NOT_INITIALIZED: *text = "initialization error"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *text = "invalid device context"; break;
    case CUDA_ERROR_CONTEXT_IS_DESTROYED: *text = "context is destroyed"; break;
    case CUDA_ERROR_INVALID_HANDLE: *text = "invalid resource handle"; break;
    case CUDA_ERROR_NOT_READY: *text = "device not ready"; break;
    case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case CUDA_ERROR_LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *text = "operation not supported"; break;
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED: *text = "part or all of the requested memory range is already mapped"; break;
    default: *text = "unnamed error";
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }
