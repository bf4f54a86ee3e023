// The little of the CUDA driver that PyTorch calls by itself: whether a device is in use, before it looks whether
// memory is pinned.

extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
