/* Undoes the filters of the rows of an 8-bit grey PNG (PNG 3rd edition, section 9): one byte for each pixel.

   A pixel is made from its neighbours on the left, above, and above on the left, so that a row by itself is one
   chain of steps that wait for each other. But a pixel and the one below it on its left need nothing of each
   other. So 16 rows go on together, each one pixel behind the row above it, in the 16 lanes of a vector: what a
   lane needs from above is what the lane before it made one step ago.

   To have the bytes of 16 rows in step, 16 bytes of each are turned like a matrix, and turned back when done.
   The rows lie in a buffer of our own, with margins, so that nothing outside of it is ever read or written.

   Built for the stable interface of Python 3.10, so that one file serves all later versions. That has no
   buffers, so bytes come in and bytes go out. Python's lock is free meanwhile. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, SUB, UP, AVERAGE, PAETH, FILTERS }; /* section 9.2 */
enum { DONE, UNKNOWN_FILTER, NO_MEMORY };

/* GCC 12 and Clang have it; CXR_ONE_LANE is there for the tests. */
#if defined(__has_builtin) && !defined(CXR_ONE_LANE)
#if __has_builtin(__builtin_shufflevector)
#define HAVE_LANES
#endif
#endif

#ifdef HAVE_LANES

#define LANES 16
typedef uint8_t lanes __attribute__((vector_size(LANES)));

/* The lower and the upper half of a and b, a byte of each in turn. */
#define LOWER(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

#ifdef __SSE2__

/* What every x86-64 has as one instruction, which GCC does not find in the general form below. */
#include <emmintrin.h>
static inline lanes minus(lanes a, lanes b) { return (lanes)_mm_subs_epu8((__m128i)a, (__m128i)b); }
static inline lanes plus(lanes a, lanes b) { return (lanes)_mm_adds_epu8((__m128i)a, (__m128i)b); }
static inline lanes least(lanes a, lanes b) { return (lanes)_mm_min_epu8((__m128i)a, (__m128i)b); }
static inline lanes next(lanes a) { return (lanes)_mm_srli_si128((__m128i)a, 1); }
static inline lanes below(lanes a, lanes first)
{
    const lanes lane0 = {255};
    return (lanes)_mm_slli_si128((__m128i)a, 1) | (first & lane0);
}

#else

/* a - b, but at least 0; a + b, but at most 255; the smaller one. */
static inline lanes minus(lanes a, lanes b) { return (a - b) & (lanes)(a > b); }
static inline lanes plus(lanes a, lanes b) { return (a + b) | (lanes)((lanes)(a + b) < a); }
static inline lanes least(lanes a, lanes b)
{
    const lanes less = (lanes)(a < b);
    return (a & less) | (b & ~less);
}
/* Every lane gets what the one after it has. */
static inline lanes next(lanes a)
{
    return __builtin_shufflevector(a, a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15);
}
/* Every lane gets what the one before it has; lane 0 gets that of `first`. */
static inline lanes below(lanes a, lanes first)
{
    return __builtin_shufflevector(a, first, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
}

#endif

/* For each lane, whichever of left, up and corner is nearest to left + up - corner; the first of equals. */
static inline lanes paeth(lanes left, lanes up, lanes corner)
{
    const lanes up_more = minus(up, corner), up_less = minus(corner, up);
    const lanes left_more = minus(left, corner), left_less = minus(corner, left);
    const lanes to_left = up_more | up_less, to_up = left_more | left_less; /* one of each pair is 0 */
    /* Sums above 255 become 255. This may make a distance to the corner too small, but then both have one sign,
       and it is as large as the other two distances still; these come first. */
    const lanes more = plus(up_more, left_more), less = plus(up_less, left_less);
    const lanes to_corner = minus(more, less) | minus(less, more);
    const lanes other = least(to_up, to_corner);
    const lanes none = {0};
    const lanes is_left = (lanes)(minus(to_left, other) == none), is_up = (lanes)(to_up == other);
    return (is_left & left) | (~is_left & ((is_up & up) | (~is_up & corner)));
}

/* Turns 16 x 16 bytes like a matrix: four times, each byte moves to where one more bit of its place says. */
static inline void transpose(lanes square[LANES])
{
    lanes other[LANES];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = LOWER(square[i], square[i + 8]);
            other[2 * i + 1] = UPPER(square[i], square[i + 8]);
        }
        for (int i = 0; i < LANES / 2; i++) {
            square[2 * i] = LOWER(other[i], other[i + 8]);
            square[2 * i + 1] = UPPER(other[i], other[i + 8]);
        }
    }
}

/* packed: height rows of 1 + width bytes, the filter first. pixels: height rows of width bytes. */
static int unfilter(const uint8_t *packed, uint8_t *pixels, size_t width, size_t height)
{
    /* A row of the buffer is a margin of zeros, the pixels, and as many more as a lane may run ahead: blocks of
       16 steps begin before step width + 15, and a block reaches 16 steps, less than 32 pixels past the end.
       Row 0 is the one above the 16; it is zeros for the first (section 9.2). */
    const size_t margin = LANES, stride = margin + width + 2 * LANES;
    uint8_t *buffer = calloc(LANES + 1, stride);
    if (buffer == NULL)
        return NO_MEMORY;
    uint8_t *rows = buffer + margin; /* pixel 0 of row 0 */
    for (size_t top = 0; top < height; top += LANES) {
        const size_t count = height - top < LANES ? height - top : LANES;
        /* By filter, the lanes whose rows have it. Those of NONE, and lanes without a row, add nothing. */
        lanes has[FILTERS] = {{0}};
        for (size_t k = 0; k < count; k++) {
            const uint8_t *row = packed + (top + k) * (width + 1);
            if (row[0] >= FILTERS) {
                free(buffer);
                return UNKNOWN_FILTER;
            }
            has[row[0]][k] = 255;
            memcpy(rows + (k + 1) * stride, row + 1, width);
        }
        /* Lane k is at pixel step - k. Left of pixel 0 are zeros in every row, and they stay zeros: whatever
           the filter, zeros on all sides add nothing. What comes of the pixels past the end reaches none
           before it. */
        lanes left = {0}, corner = {0};
        for (size_t step = 0; step < width + LANES - 1; step += LANES) {
            lanes block[LANES], above;
            memcpy(&above, rows + step, LANES);
            for (size_t k = 0; k < LANES; k++)
                memcpy(&block[k], rows + (k + 1) * stride + step - k, LANES);
            transpose(block);
            for (int i = 0; i < LANES; i++) {
                const lanes up = below(left, above);
                const lanes mean = (left & up) + ((left ^ up) >> 1); /* rounded down, without a ninth bit */
                left = block[i] + ((has[SUB] & left) | (has[UP] & up) | (has[AVERAGE] & mean) |
                                   (has[PAETH] & paeth(left, up, corner)));
                block[i] = left;
                corner = up;
                above = next(above);
            }
            transpose(block);
            for (size_t k = 0; k < LANES; k++)
                memcpy(rows + (k + 1) * stride + step - k, &block[k], LANES);
        }
        for (size_t k = 0; k < count; k++)
            memcpy(pixels + (top + k) * width, rows + (k + 1) * stride, width);
        memcpy(rows, rows + LANES * stride, width);
    }
    free(buffer);
    return DONE;
}

#else

#define LANES 1

static inline uint8_t paeth(int left, int up, int corner)
{
    const int to_left = abs(up - corner), to_up = abs(left - corner), to_corner = abs(left + up - 2 * corner);
    const int other = to_up <= to_corner ? up : corner;
    return (uint8_t)((to_left <= to_up) & (to_left <= to_corner) ? left : other);
}

/* As above, row by row. */
static int unfilter(const uint8_t *packed, uint8_t *pixels, size_t width, size_t height)
{
    uint8_t *zeros = calloc(width, 1);
    if (zeros == NULL)
        return NO_MEMORY;
    const uint8_t *above = zeros;
    for (size_t y = 0; y < height; y++, above = pixels, pixels += width, packed += width) {
        uint8_t left = 0, corner = 0;
        switch (*packed++) {
        case NONE:
            memcpy(pixels, packed, width);
            break;
        case SUB:
            for (size_t x = 0; x < width; x++)
                pixels[x] = left = (uint8_t)(packed[x] + left);
            break;
        case UP:
            for (size_t x = 0; x < width; x++)
                pixels[x] = (uint8_t)(packed[x] + above[x]);
            break;
        case AVERAGE:
            for (size_t x = 0; x < width; x++)
                pixels[x] = left = (uint8_t)(packed[x] + ((left + above[x]) >> 1));
            break;
        case PAETH:
            for (size_t x = 0; x < width; x++) {
                pixels[x] = left = (uint8_t)(packed[x] + paeth(left, above[x], corner));
                corner = above[x];
            }
            break;
        default:
            free(zeros);
            return UNKNOWN_FILTER;
        }
    }
    free(zeros);
    return DONE;
}

#endif

PyDoc_STRVAR(unfilter_doc, "unfilter(rows: bytes, width: int, height: int) -> bytes | None\n\n"
                           "Undoes the filters of the rows of an 8-bit grey PNG.\n\n"
                           "Returns height x width pixels; None where a row has a filter that no PNG has.");

static PyObject *py_unfilter(PyObject *module, PyObject *arguments)
{
    PyObject *rows, *pixels;
    Py_ssize_t width, height;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Snn:unfilter", &rows, &width, &height))
        return NULL;
    /* The last is for what is computed of a row's length. */
    if (width < 1 || height < 1 || width > (PY_SSIZE_T_MAX >> 5) - 64 ||
        height > PY_SSIZE_T_MAX / (width + 1) || PyBytes_Size(rows) != height * (width + 1)) {
        PyErr_SetString(PyExc_ValueError, "the rows are not height times width + 1 bytes");
        return NULL;
    }
    pixels = PyBytes_FromStringAndSize(NULL, height * width);
    if (pixels == NULL)
        return NULL;
    const uint8_t *from = (const uint8_t *)PyBytes_AsString(rows);
    uint8_t *to = (uint8_t *)PyBytes_AsString(pixels); /* nobody else has them yet */
    int came;
    Py_BEGIN_ALLOW_THREADS
    came = unfilter(from, to, (size_t)width, (size_t)height);
    Py_END_ALLOW_THREADS
    if (came == DONE)
        return pixels;
    Py_DECREF(pixels);
    if (came == NO_MEMORY)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static int add_constants(PyObject *module) { return PyModule_AddIntConstant(module, "LANES", LANES); }

static PyMethodDef methods[] = {{"unfilter", py_unfilter, METH_VARARGS, unfilter_doc}, {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)add_constants}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cxr_records._unfilter",
    .m_doc = "Undoes the filters of the rows of an 8-bit grey PNG; see png.py, which does without it too.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__unfilter(void) { return PyModuleDef_Init(&definition); }
