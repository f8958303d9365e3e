/* Runs the emitted .cu on a CPU: g++ compiles them with this header in front (-include).
 *
 * Every thread of a block is a fiber, which runs until it meets a barrier or an exchange between lanes. Blocks run one after
 * another. Threads and blocks come forward, backward or in random order (shim_schedule): what a kernel computes must not depend
 * on it. A barrier that not all threads reach, an exchange with lanes that are not there, and a trap end the launch with an error,
 * which the next cudaGetLastError tells.
 */
#ifndef SHIM_H
#define SHIM_H

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define LOSSLIB_START(kernel, blocks, threads, stream, run) shim::m.stream = (stream), shim::launch((blocks), (threads), [&] { kernel(run); })
#define __syncthreads() shim::barrier()
#define __shfl_xor_sync(mask, value, apart) shim::exchange((mask), (value), (apart))
#define __syncwarp(mask) (void)shim::exchange((mask), 0, 0)
#define __trap() shim::stop(719, "trap")
#define threadIdx (shim::now.thread)
#define blockIdx (shim::now.block)
#define gridDim (shim::now.grid)
#define cudaGetLastError shim::last_error
#define cudaGetErrorString shim::words

typedef int cudaError_t;

#ifdef __SANITIZE_ADDRESS__
extern "C" void __sanitizer_start_switch_fiber(void **fake, const void *stack, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void *fake, const void **stack, size_t *size);
#endif

namespace shim {

enum : size_t { STACK = 1 << 16 };
enum state { READY, AT_BARRIER, IN_EXCHANGE, DONE };

struct index { unsigned x; };

/* Where the running thread is. */
struct where {
    index thread, block, grid;
};
inline where now;

struct fiber {
    ucontext_t context;
    jmp_buf saved;
    char *stack = nullptr;
    bool made = false;              /* has it begun, so that `saved` is where it stands? */
    state is = DONE;
    unsigned me = 0;
    void *fake = nullptr;
};

/* An exchange that some lanes of a warp have entered. */
struct meeting {
    uint32_t mask = 0, arrived = 0;
    unsigned round = 0;
    uint64_t value[2][32];
};

struct machine {
    std::vector<fiber *> fibers;
    std::vector<meeting> meetings;  /* 32 a warp, by the lowest lane that takes part */
    ucontext_t context;
    jmp_buf saved;
    const void *stack = nullptr;
    size_t size = 0;
    void *fake = nullptr;
    fiber *running = nullptr;
    unsigned threads = 0, waiting = 0, done = 0;
    int schedule = 0, error = 0;
    bool failed = false;
    uint64_t random = 1;
    void (*call)(const void *) = nullptr;
    const void *body = nullptr;
    void *stream = nullptr;         /* of the latest launch */
    unsigned launches = 0;
};
inline machine m;

inline unsigned draw(const unsigned below)
{
    m.random = m.random * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((m.random >> 33) % below);
}

/* Fibers change places: by longjmp, which costs no system call; under AddressSanitizer, which must be told, by swapcontext. */

inline void leave(const bool for_good)
{
    fiber *const f = m.running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &f->fake, m.stack, m.size);
    swapcontext(&f->context, &m.context);
    __sanitizer_finish_switch_fiber(f->fake, &m.stack, &m.size);
#else
    (void)for_good;
    if (_setjmp(f->saved) == 0) _longjmp(m.saved, 1);
#endif
}

inline void run_fiber()
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &m.stack, &m.size);
#endif
    for (;;) {
        m.call(m.body);
        m.running->is = DONE;
        ++m.done;
        leave(false);
    }
}

inline void enter(fiber *f)
{
    m.running = f;
    now.thread.x = f->me;
#ifdef __SANITIZE_ADDRESS__
    if (!f->made) {
        getcontext(&f->context);
        f->context.uc_stack.ss_sp = f->stack, f->context.uc_stack.ss_size = STACK, f->context.uc_link = nullptr;
        makecontext(&f->context, run_fiber, 0);
        f->made = true;
    }
    __sanitizer_start_switch_fiber(&m.fake, f->stack, STACK);
    swapcontext(&m.context, &f->context);
    __sanitizer_finish_switch_fiber(m.fake, nullptr, nullptr);
#else
    if (_setjmp(m.saved) != 0) return;
    if (f->made) _longjmp(f->saved, 1);
    f->made = true;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack, f->context.uc_stack.ss_size = STACK, f->context.uc_link = nullptr;
    makecontext(&f->context, run_fiber, 0);
    setcontext(&f->context);
#endif
}

/* End the launch. What the other fibers were at is forgotten. */
inline void stop(const int error, const char *why)
{
    fprintf(stderr, "shim: %s in thread %u of block %u\n", why, now.thread.x, now.block.x);
    m.error = error;
    m.failed = true;
    leave(true);
    abort();
}

inline void barrier()
{
    m.running->is = AT_BARRIER;
    ++m.waiting;
    leave(false);
}

template <class T> T exchange(const uint32_t mask, const T value, const int apart)
{
    static_assert(sizeof(T) <= 8, "an exchange is of 8 bytes at most");
    const unsigned lane = m.running->me % 32, first = m.running->me - lane;
    const unsigned lanes = m.threads - first < 32 ? m.threads - first : 32;
    const uint32_t there = lanes == 32 ? mask : mask & ((1u << lanes) - 1);
    if ((there >> lane & 1) == 0) stop(715, "an exchange whose mask leaves out its own lane");
    if ((there >> (lane ^ (unsigned)apart) & 1) == 0) stop(715, "an exchange with a lane outside its mask");
    meeting &at = m.meetings[first + (unsigned)__builtin_ctz(there)];
    if (at.arrived == 0) at.mask = there;
    if (at.mask != there) stop(715, "an exchange of lanes that disagree about its mask");
    const unsigned round = at.round;
    memcpy(&at.value[round & 1][lane], &value, sizeof value);
    at.arrived |= 1u << lane;
    if (at.arrived == there) {
        at.arrived = 0;
        ++at.round;
    }
    while (at.round == round) {
        m.running->is = IN_EXCHANGE;
        leave(false);
    }
    T other;
    memcpy(&other, &at.value[round & 1][lane ^ (unsigned)apart], sizeof other);
    return other;
}

/* Is an exchange over that a thread waits for? It looks itself; so it may go on if any round has ended. */
inline bool may_run(const fiber *f)
{
    if (f->is == READY) return true;
    if (f->is != IN_EXCHANGE) return false;
    const unsigned first = f->me / 32 * 32;
    for (unsigned k = first; k < first + 32; ++k)
        if (m.meetings[k].arrived >> (f->me % 32) & 1) return false;
    return true;
}

inline void order(std::vector<unsigned> &places)
{
    const unsigned count = (unsigned)places.size();
    for (unsigned k = 0; k < count; ++k) places[k] = m.schedule == 1 ? count - 1 - k : k;
    if (m.schedule == 2)
        for (unsigned k = count; k > 1; --k) std::swap(places[k - 1], places[draw(k)]);
}

/* A warp goes as far as it can before the next one does anything: what only the barriers keep apart is far apart. */
inline bool run_warp(const unsigned first)
{
    std::vector<unsigned> lanes(m.threads - first < 32 ? m.threads - first : 32);
    bool moved = false;
    for (bool again = true; again;) {
        again = false;
        order(lanes);
        for (const unsigned lane : lanes) {
            fiber *const f = m.fibers[first + lane];
            if (!may_run(f)) continue;
            f->is = READY;
            enter(f);
            moved = again = true;
            if (m.failed) return true;
        }
    }
    return moved;
}

inline void run_block()
{
    for (meeting &at : m.meetings) at.arrived = 0;
    m.waiting = m.done = 0;
    for (unsigned k = 0; k < m.threads; ++k) m.fibers[k]->is = READY;
    std::vector<unsigned> warps((m.threads + 31) / 32);
    while (m.done < m.threads) {
        bool moved = false;
        order(warps);
        for (const unsigned w : warps) {
            moved = run_warp(w * 32) || moved;
            if (m.failed) return;
        }
        if (moved && m.waiting < m.threads) continue;
        now.thread.x = 0;
        if (m.waiting < m.threads) {
            fprintf(stderr, "shim: %u of %u threads wait at a barrier in block %u\n", m.waiting, m.threads, now.block.x);
            m.error = 716, m.failed = true;
            return;
        }
        m.waiting = 0;
        for (unsigned k = 0; k < m.threads; ++k) m.fibers[k]->is = READY;
    }
}

template <class Body> void launch(const unsigned blocks, const unsigned threads, const Body &body)
{
    if (blocks == 0 || blocks > 0x7fffffffu || threads == 0 || threads > 1024) {
        m.error = 9;
        return;
    }
    ++m.launches;
    if (m.failed) return;                                   /* a device that trapped does nothing more */
    while (m.fibers.size() < threads) {
        fiber *const f = new fiber;
        f->stack = (char *)malloc(STACK);
        f->me = (unsigned)m.fibers.size();
        m.fibers.push_back(f);
    }
    m.threads = threads;
    m.meetings.resize((threads + 31) / 32 * 32);
    m.call = [](const void *made) { (*(const Body *)made)(); };
    m.body = &body;
    now.grid.x = blocks;
    std::vector<unsigned> turns(blocks);
    order(turns);
    for (const unsigned b : turns) {
        now.block.x = b;
        run_block();
        if (m.failed) return;
    }
}

inline const char *words(const int error) { return error == 719 ? "unspecified launch failure" : "an error of the shim"; }

/* What went wrong since it was last asked; the device is as new after it. */
inline int last_error()
{
    const int error = m.error;
    if (m.failed)
        for (fiber *f : m.fibers) {
            f->made = false;
#ifdef __SANITIZE_ADDRESS__
            f->stack = (char *)malloc(STACK);               /* the old one stays poisoned */
#endif
        }
    m.error = 0, m.failed = false;
    for (meeting &at : m.meetings) at = meeting();
    return error;
}

}

/* Numbers. */

static inline float __uint_as_float(const uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t __float_as_uint(const float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of_half(const uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * ldexpf((float)fraction, -24);
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline uint16_t half_of_float(const float x)
{
    const uint32_t bits = __float_as_uint(x);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (x != x) return 0x7fff;
    if (fabsf(x) >= 65520) return sign | 0x7c00;
    if (fabsf(x) < 0x1p-14f) return (uint16_t)(sign | (uint16_t)nearbyintf(fabsf(x) * 0x1p24f));
    const uint32_t size = (bits & 0x7fffffff) - (112u << 23);
    return (uint16_t)(sign | (size + 0xfff + (size >> 13 & 1)) >> 13);
}

/* For the tests: the stream of the latest launch, and how many there were. */
extern "C" __attribute__((weak)) void *shim_stream(void) { return shim::m.stream; }
extern "C" __attribute__((weak)) unsigned shim_launches(void) { return shim::m.launches; }

/* For the tests: 0 forward, 1 backward, 2 random. */
extern "C" __attribute__((weak)) void shim_schedule(const int schedule, const int seed)
{
    shim::m.schedule = schedule;
    shim::m.random = (uint64_t)seed * 2 + 1;
}

#endif
