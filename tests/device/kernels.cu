// The steps of the pair `residual` of tests/graphs.py, for GPU tests that need no TensorRT.
//
// kernels.ptx is made of this file and committed, so that a device needs no compiler:
//     nvcc -ptx -arch=compute_75 kernels.cu -o kernels.ptx
// and then its header is lowered to `.version 7.0` and `.target sm_70`: any driver from CUDA 11 on compiles it for any
// GPU from Volta on.
extern "C" __global__ void keyframe(const unsigned char *frame, unsigned char *mask, float *memory, int count)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    mask[i] = frame[3 * i] / 64;
    memory[i] = (float)frame[3 * i] - (float)frame[3 * i + 1];
}

extern "C" __global__ void delta(const unsigned char *frame, unsigned char *mask, const float *memory, int count)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = fminf(fmaxf((float)frame[3 * i + 1] + memory[i], 0.0f), 255.0f);
    mask[i] = (unsigned char)(sum / 64.0f);
}

// What must not happen: it makes the GPU's context unusable, for the test of errors that stay.
extern "C" __global__ void broken(unsigned char *address) { *(volatile int *)(address + (1ull << 46)) = 1; }
