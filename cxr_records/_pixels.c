/* What takes most of the time between a grey PNG and a record, beside inflating: `unfilter` and `shrink`.

   Built for the stable interface of Python 3.10, so that one file serves all later versions. That has no
   buffers to write to, so bytes come in and bytes go out. Python's lock is free meanwhile. Nothing here trusts
   what it is given: sizes are checked before a byte is read.

   unfilter undoes the filters of the rows (PNG 3rd edition, section 9) of 8-bit grey: one byte for each pixel.
   A pixel is made from its neighbours on the left, above, and above on the left, so that a row by itself is one
   chain of steps that wait for each other. But a pixel and the one below it on its left need nothing of each
   other. So 16 rows go on together, each one pixel behind the row above it, in the 16 lanes of a vector: what a
   lane needs from above is what the lane before it made one step ago.

   To have the bytes of 16 rows in step, 16 bytes of each are turned like a matrix, and turned back when done.
   The rows lie in a buffer of our own, with margins, so that nothing outside of it is ever read or written.

   shrink resizes 8-bit grey as Pillow does, bit for bit: first across, then down, each pixel a sum of weights
   with 22 bits behind the point, rounded to 8 bits each time. A weight comes in two halves, its upper bits and
   its lower 11, as every x86-64 multiplies eight pairs of 16 bits at once. */

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
#if defined(__SSE2__) && !defined(CXR_ONE_LANE)
#define HAVE_SSE2
#include <emmintrin.h>
#endif

#ifdef HAVE_LANES

#define LANES 16
typedef uint8_t lanes __attribute__((vector_size(LANES)));

/* The lower and the upper half of a and b, a byte of each in turn. */
#define LOWER(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

#ifdef HAVE_SSE2

/* What every x86-64 has as one instruction, which GCC does not find in the general form below. */
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

#define ROUND (1 << 21)
#define SHIFT 22 /* bits of a weight behind the point */
#define LOW_BITS 11
#define GROUP 8 /* weights come in groups of so many, the last ones 0 */

/* Along one axis: for each pixel that comes out, the first that goes in, and `taps` weights. */
typedef struct {
    const int32_t *first;
    const int16_t *high, *low;
    size_t size, taps;
} axis;

#ifdef HAVE_SSE2

static inline uint8_t weigh(const uint8_t *pixels, const int16_t *high, const int16_t *low, size_t taps)
{
    __m128i highs = _mm_setzero_si128(), lows = highs;
    for (size_t j = 0; j < taps; j += GROUP) {
        const __m128i eight = _mm_loadl_epi64((const __m128i *)(pixels + j));
        const __m128i wide = _mm_unpacklo_epi8(eight, _mm_setzero_si128());
        highs = _mm_add_epi32(highs, _mm_madd_epi16(wide, _mm_loadu_si128((const __m128i *)(high + j))));
        lows = _mm_add_epi32(lows, _mm_madd_epi16(wide, _mm_loadu_si128((const __m128i *)(low + j))));
    }
    __m128i sums = _mm_add_epi32(_mm_slli_epi32(highs, LOW_BITS), lows);
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, _MM_SHUFFLE(1, 0, 3, 2)));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint8_t)(((uint32_t)_mm_cvtsi128_si32(sums) + ROUND) >> SHIFT);
}

/* One row of `width` pixels, a multiple of GROUP, out of `taps` rows below each other. */
static inline void weigh_rows(const uint8_t *rows, size_t width, const int16_t *high, const int16_t *low,
                              size_t taps, uint8_t *out)
{
    const __m128i zero = _mm_setzero_si128();
    for (size_t x = 0; x < width; x += GROUP) {
        __m128i left_high = zero, left_low = zero, right_high = zero, right_low = zero;
        for (size_t j = 0; j < taps; j += 2) { /* two rows in turn, as pairs are added */
            const __m128i one = _mm_loadl_epi64((const __m128i *)(rows + j * width + x));
            const __m128i other = _mm_loadl_epi64((const __m128i *)(rows + (j + 1) * width + x));
            const __m128i pairs = _mm_unpacklo_epi8(one, other);
            const __m128i left = _mm_unpacklo_epi8(pairs, zero), right = _mm_unpackhi_epi8(pairs, zero);
            int32_t two_high, two_low;
            memcpy(&two_high, high + j, sizeof two_high);
            memcpy(&two_low, low + j, sizeof two_low);
            const __m128i highs = _mm_set1_epi32(two_high), lows = _mm_set1_epi32(two_low);
            left_high = _mm_add_epi32(left_high, _mm_madd_epi16(left, highs));
            left_low = _mm_add_epi32(left_low, _mm_madd_epi16(left, lows));
            right_high = _mm_add_epi32(right_high, _mm_madd_epi16(right, highs));
            right_low = _mm_add_epi32(right_low, _mm_madd_epi16(right, lows));
        }
        const __m128i half = _mm_set1_epi32(ROUND);
        __m128i left = _mm_add_epi32(_mm_add_epi32(_mm_slli_epi32(left_high, LOW_BITS), left_low), half);
        __m128i right = _mm_add_epi32(_mm_add_epi32(_mm_slli_epi32(right_high, LOW_BITS), right_low), half);
        left = _mm_packs_epi32(_mm_srai_epi32(left, SHIFT), _mm_srai_epi32(right, SHIFT));
        _mm_storel_epi64((__m128i *)(out + x), _mm_packus_epi16(left, left));
    }
}

#else

static inline uint8_t weigh(const uint8_t *pixels, const int16_t *high, const int16_t *low, size_t taps)
{
    uint32_t highs = 0, lows = ROUND;
    for (size_t j = 0; j < taps; j++) {
        highs += (uint32_t)(pixels[j] * high[j]);
        lows += (uint32_t)(pixels[j] * low[j]);
    }
    return (uint8_t)(((highs << LOW_BITS) + lows) >> SHIFT);
}

/* As above. */
static inline void weigh_rows(const uint8_t *rows, size_t width, const int16_t *high, const int16_t *low,
                              size_t taps, uint8_t *out)
{
    for (size_t x = 0; x < width; x++) {
        uint32_t highs = 0, lows = ROUND;
        for (size_t j = 0; j < taps; j++) {
            highs += (uint32_t)(rows[j * width + x] * high[j]);
            lows += (uint32_t)(rows[j * width + x] * low[j]);
        }
        out[x] = (uint8_t)(((highs << LOW_BITS) + lows) >> SHIFT);
    }
}

#endif

/* pixels: height rows of width bytes. out: down.size rows of across.size bytes. */
static int shrink(const uint8_t *pixels, size_t width, size_t height, axis across, axis down, uint8_t *out)
{
    const size_t stride = (across.size + GROUP - 1) / GROUP * GROUP;
    uint8_t *narrow = calloc(height + 1, stride); /* all rows made narrow, and the one that is being made */
    if (narrow == NULL)
        return NO_MEMORY;
    uint8_t *made = narrow + height * stride;
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < across.size; x++)
            narrow[y * stride + x] = weigh(pixels + y * width + (size_t)across.first[x],
                                           across.high + x * across.taps, across.low + x * across.taps,
                                           across.taps);
    for (size_t y = 0; y < down.size; y++) {
        weigh_rows(narrow + (size_t)down.first[y] * stride, stride, down.high + y * down.taps,
                   down.low + y * down.taps, down.taps, made);
        memcpy(out + y * across.size, made, across.size);
    }
    free(narrow);
    return DONE;
}

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

PyDoc_STRVAR(shrink_doc,
             "shrink(pixels, width: int, height: int, first_x, weights_x, first_y, weights_y) -> bytes\n\n"
             "Resizes 8-bit grey; see resizing.py, which makes the weights.\n\n"
             "first: int32 [out], the first pixel for each that comes out. weights: int16 [2, out, taps], their\n"
             "upper bits and their lower 11; taps is a multiple of 8.");

/* Checks what belongs to one axis: that no weight is for a pixel that is not there. */
static int make_axis(const char *first, Py_ssize_t first_bytes, const char *weights, Py_ssize_t weights_bytes,
                     Py_ssize_t size, axis *made)
{
    const Py_ssize_t count = first_bytes / (Py_ssize_t)sizeof(int32_t);
    if (count < 1 || count > INT32_MAX || size > INT32_MAX || first_bytes % (Py_ssize_t)sizeof(int32_t))
        return 0;
    const Py_ssize_t taps = weights_bytes / (2 * (Py_ssize_t)sizeof(int16_t)) / count;
    if (taps < GROUP || taps % GROUP || taps > size || weights_bytes != 2 * (Py_ssize_t)sizeof(int16_t) * count * taps)
        return 0;
    made->first = (const int32_t *)first;
    made->high = (const int16_t *)weights;
    made->low = made->high + count * taps;
    made->size = (size_t)count;
    made->taps = (size_t)taps;
    for (Py_ssize_t i = 0; i < count; i++)
        if (made->first[i] < 0 || made->first[i] > size - taps)
            return 0;
    return 1;
}

static PyObject *py_shrink(PyObject *module, PyObject *arguments)
{
    const char *pixels, *first_x, *weights_x, *first_y, *weights_y;
    Py_ssize_t num_pixels, width, height, first_x_bytes, weights_x_bytes, first_y_bytes, weights_y_bytes;
    axis across, down;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y#nny#y#y#y#:shrink", &pixels, &num_pixels, &width, &height, &first_x,
                          &first_x_bytes, &weights_x, &weights_x_bytes, &first_y, &first_y_bytes, &weights_y,
                          &weights_y_bytes))
        return NULL;
    if (width < 1 || height < 1 || height > PY_SSIZE_T_MAX / width || num_pixels != height * width ||
        !make_axis(first_x, first_x_bytes, weights_x, weights_x_bytes, width, &across) ||
        !make_axis(first_y, first_y_bytes, weights_y, weights_y_bytes, height, &down)) {
        PyErr_SetString(PyExc_ValueError, "the weights are not for this many pixels");
        return NULL;
    }
    PyObject *resized = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(across.size * down.size));
    if (resized == NULL)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(resized); /* nobody else has them yet */
    int came;
    Py_BEGIN_ALLOW_THREADS
    came = shrink((const uint8_t *)pixels, (size_t)width, (size_t)height, across, down, to);
    Py_END_ALLOW_THREADS
    if (came == DONE)
        return resized;
    Py_DECREF(resized);
    return PyErr_NoMemory();
}

static int add_constants(PyObject *module) { return PyModule_AddIntConstant(module, "LANES", LANES); }

static PyMethodDef methods[] = {{"unfilter", py_unfilter, METH_VARARGS, unfilter_doc},
                                {"shrink", py_shrink, METH_VARARGS, shrink_doc},
                                {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)add_constants}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cxr_records._pixels",
    .m_doc = "What takes most of the time between a grey PNG and a record; the package does without it too.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__pixels(void) { return PyModuleDef_Init(&definition); }
