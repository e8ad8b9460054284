/* Device, page-locked and managed memory; copies and fills are queued in queue.c. */
#define _GNU_SOURCE
#include "sim.h"

#include <stdlib.h>
#include <string.h>

/* Real allocations start at 512 bytes at least. */
enum { ALIGNMENT = 512, FRESH = 0xCD, FREED = 0xDD };

Block *sim_find(uintptr_t address)
{
    Block *freed = NULL;
    for (Block *b = world.blocks; b; b = b->next)
        if (address >= b->start && address < b->start + b->size) {
            if (b->live) return b;
            freed = b;
        }
    return freed;
}

static Block *add(void *start, size_t size, Kind kind)
{
    Block *block = calloc(1, sizeof *block);
    *block = (Block){.start = (uintptr_t)start, .size = size, .kind = kind, .live = true, .owner = sim_current()};
    block->writer = -1;
    block->next = world.blocks;
    world.blocks = block;
    return block;
}

static CUresult allocate(void **address, size_t size, Kind kind)
{
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (sim_capturing()) {
        sim_problem("capture violation", "memory was allocated during a capture");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    *address = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset(*address, FRESH, size);
    add(*address, size, kind);
    return CUDA_SUCCESS;
}

static CUresult release(uintptr_t address, bool (*fits)(Kind), const char *what)
{
    for (Block *b = world.blocks; b; b = b->next) {
        if (b->start != address || !fits(b->kind)) continue;
        if (!b->live) continue;
        b->live = false;
        if (b->kind != REGISTERED) memset((void *)b->start, FREED, b->size);
        return CUDA_SUCCESS;
    }
    Block *before = sim_find(address);
    if (before && !before->live) sim_problem("double free", "%s of %zu bytes was freed twice", what, before->size);
    else sim_problem("unknown memory", "%s was freed at an address that was never allocated", what);
    return CUDA_ERROR_INVALID_VALUE;
}

static bool on_device(Kind kind) { return kind == DEVICE || kind == MANAGED; }
static bool on_host(Kind kind) { return kind == HOST; }
static bool registered(Kind kind) { return kind == REGISTERED; }

CUresult cuMemAlloc(CUdeviceptr *address, size_t size)
{
    ENTER();
    LEAVE(allocate((void **)address, size, DEVICE));
}

CUresult cuMemAllocManaged(CUdeviceptr *address, size_t size, unsigned int flags)
{
    ENTER();
    LEAVE(allocate((void **)address, size, MANAGED));
}

CUresult cuMemHostAlloc(void **address, size_t size, unsigned int flags)
{
    ENTER();
    LEAVE(allocate(address, size, HOST));
}

CUresult cuMemFree(CUdeviceptr address)
{
    ENTER();
    LEAVE(release((uintptr_t)address, on_device, "device memory"));
}

CUresult cuMemFreeHost(void *address)
{
    ENTER();
    LEAVE(release((uintptr_t)address, on_host, "page-locked memory"));
}

/* Pages are locked whole: two registrations that share one are refused, as on a device. */
CUresult cuMemHostRegister(void *address, size_t size, unsigned int flags)
{
    ENTER();
    uintptr_t from = (uintptr_t)address & ~(uintptr_t)4095, to = ((uintptr_t)address + size + 4095) & ~(uintptr_t)4095;
    for (Block *b = world.blocks; b; b = b->next)
        if (b->live && b->kind == REGISTERED && b->start < to && from < b->start + b->size)
            LEAVE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    add(address, size, REGISTERED);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuMemHostUnregister(void *address)
{
    ENTER();
    LEAVE(release((uintptr_t)address, registered, "the registration of page-locked memory"));
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *address, unsigned int flags)
{
    ENTER();
    Block *block = sim_find((uintptr_t)address);
    *device = (CUdeviceptr)(uintptr_t)address;
    LEAVE(block && block->live ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemHostGetFlags(unsigned int *flags, void *address)
{
    ENTER();
    *flags = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    ENTER();
    size_t used = 0;
    for (Block *b = world.blocks; b; b = b->next) used += b->live && b->kind != REGISTERED ? b->size : 0;
    *total_bytes = (size_t)8 << 30;
    *free_bytes = *total_bytes - used;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t length, unsigned int flags)
{
    ENTER();
    Block *block = sim_find((uintptr_t)address);
    LEAVE(block && block->live && block->kind == MANAGED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* ---- copies and fills ---- */

static bool page_locked(const void *address)
{
    Block *block = sim_find((uintptr_t)address);
    return block && block->live;
}

/* One end is `host` memory where `to_host` or `from_host` says so: there nothing is known of ordinary memory. */
static Op *copy(void *to, const void *from, size_t size, bool to_host, bool from_host)
{
    Op *op = sim_op(COPY);
    sim_add_range(op, from, size, false);
    sim_add_range(op, to, size, true);
    bool pageable = (from_host && !page_locked(from)) || (to_host && !page_locked(to));
    if (pageable) sim_problem("pageable copy", "%zu bytes were copied asynchronously from or to pageable memory", size);
    if (from_host && pageable) {
        op->staged = malloc(size);
        memcpy(op->staged, from, size);
    }
    return op;
}

/* A copy without a stream waits for the streams that the default stream waits for, and is done when it returns. */
static CUresult copy_now(void *to, const void *from, size_t size)
{
    if (sim_capturing()) {
        sim_problem("capture violation", "a copy waited during a capture");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    sim_finish_all(true);
    memmove(to, from, size);
    return world.sticky;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream stream)
{
    ENTER();
    LEAVE(sim_enqueue(sim_stream(stream), copy((void *)(uintptr_t)to, from, size, false, true)));
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream stream)
{
    ENTER();
    LEAVE(sim_enqueue(sim_stream(stream), copy(to, (void *)(uintptr_t)from, size, true, false)));
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    ENTER();
    Op *op = copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size, false, false);
    LEAVE(sim_enqueue(sim_stream(stream), op));
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t size)
{
    ENTER();
    LEAVE(copy_now((void *)(uintptr_t)to, from, size));
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t size)
{
    ENTER();
    LEAVE(copy_now(to, (void *)(uintptr_t)from, size));
}

CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t size)
{
    ENTER();
    LEAVE(copy_now((void *)(uintptr_t)to, (void *)(uintptr_t)from, size));
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    ENTER();
    Op *op = sim_op(FILL);
    sim_add_range(op, (void *)(uintptr_t)to, count, true);
    op->value = value;
    op->width = 1;
    LEAVE(sim_enqueue(sim_stream(stream), op));
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count)
{
    ENTER();
    sim_finish_all(true);
    memset((void *)(uintptr_t)to, value, count);
    LEAVE(CUDA_SUCCESS);
}
