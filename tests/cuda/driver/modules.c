/* Modules of which the kernels are known: those of tests/device/kernels.cu, so that the tests of the device run here too. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    KernelFn kernel;
    bool writes[3];
} Known;
typedef struct {
    unsigned char *frame, *mask;
    float *memory;
    int count;
} Arguments;

static int keyframe(void *data)
{
    Arguments *a = data;
    for (int i = 0; i < a->count; i++) {
        a->mask[i] = a->frame[3 * i] / 64;
        a->memory[i] = (float)a->frame[3 * i] - (float)a->frame[3 * i + 1];
    }
    return 0;
}

static int delta(void *data)
{
    Arguments *a = data;
    for (int i = 0; i < a->count; i++) {
        float sum = (float)a->frame[3 * i + 1] + a->memory[i];
        a->mask[i] = (unsigned char)((sum < 0 ? 0 : sum > 255 ? 255 : sum) / 64);
    }
    return 0;
}

static int broken(void *data) { return 1; }

static Known known[] = {
    {"keyframe", keyframe, {false, true, true}}, {"delta", delta, {false, true, false}}, {"broken", broken, {0}}};

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    ENTER();
    *module = (CUmodule)known;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuModuleUnload(CUmodule module)
{
    ENTER();
    LEAVE(CUDA_SUCCESS);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    ENTER();
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) {
            *function = (CUfunction)&known[i];
            LEAVE(CUDA_SUCCESS);
        }
    LEAVE(CUDA_ERROR_NOT_FOUND);
}

/* Arguments are kept for good: a graph may launch them again at any time. */
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,
                        void **extra)
{
    ENTER();
    Known *what = (Known *)function;
    Op *op = sim_op(KERNEL);
    op->kernel = what->kernel;
    if (what->kernel != broken) {
        Arguments *a = malloc(sizeof *a);
        *a = (Arguments){*(void **)parameters[0], *(void **)parameters[1], *(void **)parameters[2], *(int *)parameters[3]};
        size_t count = (size_t)a->count;
        op->data = a;
        sim_add_range(op, a->frame, 3 * count, what->writes[0]);
        sim_add_range(op, a->mask, count, what->writes[1]);
        sim_add_range(op, a->memory, 4 * count, what->writes[2]);
    }
    LEAVE(sim_enqueue(sim_stream(stream), op));
}
