/* RecAdam's step in one pass over memory: 5 streams read, 3 written (see recadam.py for the formulas, native.py for the call).

   x holds 1 - beta1, beta2, 1 - beta2, rate, root, eps, keep, add:
     m <- m + (1 - beta1) (g - m);  v <- beta2 v + (1 - beta2) g g
     p <- keep p - rate m / (sqrt(v) root + eps) + add a
   Each thread moves its part of every piece, so that they share the work without talking to each other. */
#include <math.h>
#include <omp.h>
#include <stdint.h>

typedef struct { void *p; const void *g; void *m; void *v; const void *a; int64_t n; } piece;

#define STEP(NAME, REAL, SQRT)                                                                                         \
    static void NAME##_part(REAL *restrict p, const REAL *restrict g, REAL *restrict m, REAL *restrict v,             \
                            const REAL *restrict a, int64_t n, const double *x) {                                     \
        const REAL one_b1 = x[0], b2 = x[1], one_b2 = x[2], rate = x[3], root = x[4], eps = x[5], keep = x[6], add = x[7]; \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            const REAL mi = m[i] + one_b1 * (g[i] - m[i]), vi = b2 * v[i] + one_b2 * (g[i] * g[i]);                    \
            m[i] = mi;                                                                                                 \
            v[i] = vi;                                                                                                 \
            p[i] = keep * p[i] - rate * mi / (SQRT(vi) * root + eps) + add * a[i];                                     \
        }                                                                                                              \
    }                                                                                                                  \
    void NAME(const piece *pieces, int64_t count, int64_t threads, const double *x) {                                 \
        _Pragma("omp parallel num_threads(threads)") {                                                                 \
            const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();                                  \
            for (int64_t k = 0; k < count; k++) {                                                                      \
                const piece q = pieces[k];                                                                             \
                const int64_t from = q.n * part / parts, to = q.n * (part + 1) / parts;                                \
                NAME##_part((REAL *)q.p + from, (const REAL *)q.g + from, (REAL *)q.m + from, (REAL *)q.v + from,      \
                            (const REAL *)q.a + from, to - from, x);                                                   \
            }                                                                                                          \
        }                                                                                                              \
    }

STEP(step_float32, float, sqrtf)
STEP(step_float64, double, sqrt)
