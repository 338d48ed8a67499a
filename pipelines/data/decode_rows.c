/* Some rows of a batch: decode, crop, resize, flip. Built and bound by compiled.py.
 *
 * Of a JPEG only the crop is decoded. TurboJPEG, and so FFCV's decoder, knows only whole pictures;
 * libjpeg-turbo's older interface skips rows above a box (their entropy coding is read, nothing
 * more), leaves out whole columns of blocks beside it, and stops below it. Crops of whole pictures
 * go to FFCV's decoder; the pixels are the same either way, bit for bit.
 *
 * Crop, resize and flip are one pass with Pillow's antialiased bilinear weights, so that what comes
 * out equals torchvision's to rounding. (OpenCV's INTER_AREA, which FFCV uses, takes three times as
 * long and turns blocky as soon as it has to enlarge.)
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <setjmp.h>

enum { MODE_JPG = 0 };

/* What a row that was not filled is marked with; 0 is success. FFCV's decoder gives -1. */
enum { BROKEN = 1, OTHER_SIZE = 2, TRUNCATED = 3, NO_MEMORY = 4 };

/* What upsampling colour looks at around a pixel, in pixels: within this margin, pictures cut by
 * libjpeg differ from whole ones. */
enum { MARGIN = 2 };

/* Four floats at a time: one pixel's three channels and one more that is thrown away. */
typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef uint8_t byte4 __attribute__((vector_size(4)));

/* FFCV's: source, its bytes, its height, width, destination, height, width, offsets, scale as a
 * fraction, crop, flip. */
typedef int (*WholeDecoder)(const uint8_t *, uint64_t, uint32_t, uint32_t, uint8_t *, uint32_t,
                            uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint8_t, uint8_t);

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf leave;
} ErrorManager;

static void leave(j_common_ptr decoder) { longjmp(((ErrorManager *)decoder->err)->leave, 1); }

/* Warnings are errors too: what libjpeg makes up in place of missing data is no sample. */
static void on_message(j_common_ptr decoder, int level) {
    if (level < 0) leave(decoder);
}

static void print_nothing(j_common_ptr decoder) { (void)decoder; }

/* Decode at least the box (left, top, columns, rows) of `source` at 1/`denominator` of its size,
 * all in pixels of the scaled picture, to `out` as RGB without padding.
 *
 * Expected: width, height of the whole file's picture. Returned in `region`: first column, first
 * row, columns and rows that were written, never more than the scaled picture has. Returns 0 or
 * one of the codes above.
 */
int tokenpool_decode_region(const uint8_t *source, uint64_t size, uint32_t width, uint32_t height,
                            uint32_t denominator, uint32_t left, uint32_t top, uint32_t columns,
                            uint32_t rows, uint8_t *out, int64_t *region) {
    struct jpeg_decompress_struct decoder;
    ErrorManager errors;
    decoder.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave;
    errors.base.emit_message = on_message;
    errors.base.output_message = print_nothing;
    if (setjmp(errors.leave)) {
        jpeg_destroy_decompress(&decoder);
        return BROKEN;
    }
    jpeg_create_decompress(&decoder);
    jpeg_mem_src(&decoder, source, size);
    jpeg_read_header(&decoder, TRUE);
    if (decoder.image_width != width || decoder.image_height != height) {
        jpeg_destroy_decompress(&decoder);
        return OTHER_SIZE;
    }
    /* As FFCV decodes, so that it makes no difference which of the two does it. */
    decoder.out_color_space = JCS_RGB;
    decoder.dct_method = JDCT_IFAST;
    decoder.scale_num = 1;
    decoder.scale_denom = denominator;
    jpeg_start_decompress(&decoder);

    const uint32_t last_column = left + columns + MARGIN, last_row = top + rows;
    JDIMENSION first = left > MARGIN ? left - MARGIN : 0;
    JDIMENSION count =
        (last_column < decoder.output_width ? last_column : decoder.output_width) - first;
    const uint32_t end = last_row < decoder.output_height ? last_row : decoder.output_height;
    if (count < decoder.output_width) jpeg_crop_scanline(&decoder, &first, &count);
    if (top > 0 && jpeg_skip_scanlines(&decoder, top) != top) {
        jpeg_destroy_decompress(&decoder);
        return TRUNCATED;
    }
    const size_t stride = (size_t)decoder.output_width * 3;
    region[0] = first;
    region[1] = top;
    region[2] = decoder.output_width;
    region[3] = end - top;
    while (decoder.output_scanline < end) {
        JSAMPROW row[4];
        uint8_t *at = out + (decoder.output_scanline - top) * stride;
        const uint32_t left_over = end - decoder.output_scanline;
        const uint32_t wanted = left_over < 4 ? left_over : 4;
        for (uint32_t i = 0; i < wanted; i++) row[i] = at + i * stride;
        if (jpeg_read_scanlines(&decoder, row, wanted) == 0) {
            jpeg_destroy_decompress(&decoder);
            return TRUNCATED;
        }
    }
    jpeg_destroy_decompress(&decoder);
    return 0;
}

/* Pillow's bilinear filter along one axis: which source pixels make up each of the result's. */
typedef struct {
    int32_t *first, *count; /* [out]: first source pixel and how many follow */
    float *weights;         /* [out][most], summing to 1 */
    int32_t most;
} Taps;

/* The box begins at `begin` and is `extent` long, both may be fractions; of the source only
 * [low_limit, high_limit) may be used. Returns 0 if there is no memory. Freed by `free_taps`. */
static int make_taps(Taps *taps, double begin, double extent, int32_t low_limit,
                     int32_t high_limit, int32_t out_size) {
    const double scale = extent / out_size, support = scale > 1 ? scale : 1;
    taps->most = (int32_t)ceil(support) * 2 + 1;
    taps->first = malloc(sizeof(int32_t) * 2 * out_size);
    taps->weights = malloc(sizeof(float) * out_size * taps->most);
    if (!taps->first || !taps->weights) return 0;
    taps->count = taps->first + out_size;
    for (int32_t i = 0; i < out_size; i++) {
        const double centre = begin + (i + 0.5) * scale;
        int32_t low = (int32_t)floor(centre - support + 0.5);
        int32_t high = (int32_t)floor(centre + support + 0.5);
        if (low < low_limit) low = low_limit;
        if (low > high_limit - 1) low = high_limit - 1;
        if (high > high_limit) high = high_limit;
        if (high < low + 1) high = low + 1;
        if (high > low + taps->most) high = low + taps->most;
        float *weights = taps->weights + (size_t)i * taps->most;
        double total = 0;
        for (int32_t tap = 0; tap < high - low; tap++) {
            const double weight = 1 - fabs((low + tap - centre + 0.5) / support);
            weights[tap] = weight > 0 ? (float)weight : 0;
            total += weights[tap];
        }
        if (total > 0)
            for (int32_t tap = 0; tap < high - low; tap++) weights[tap] /= (float)total;
        else
            weights[0] = 1;
        taps->first[i] = low;
        taps->count[i] = total > 0 ? high - low : 1;
    }
    return 1;
}

static void free_taps(Taps *taps) {
    free(taps->first);
    free(taps->weights);
}

/* Weighted sum of rows of bytes, `stride` apart, into `line`. */
static void mix_rows(const uint8_t *row, size_t stride, int32_t count, const float *weights,
                     size_t length, float *restrict line) {
    if (count == 1) {
        for (size_t j = 0; j < length; j++) line[j] = weights[0] * row[j];
        return;
    }
    for (size_t j = 0; j < length; j++)
        line[j] = weights[0] * row[j] + weights[1] * row[stride + j];
    for (int32_t tap = 2; tap < count; tap++) {
        row += stride;
        for (size_t j = 0; j < length; j++) line[j] += weights[tap] * row[stride + j];
    }
}

static inline float4 load(const float *from) {
    float4 pixel;
    memcpy(&pixel, from, sizeof pixel);
    return pixel;
}

/* Weights are not negative and sum to one, so nothing leaves 0..255.5 and a bit. */
static inline void store(uint8_t *to, float4 pixel, size_t bytes) {
    const byte4 whole = __builtin_convertvector(__builtin_convertvector(pixel, int4), byte4);
    memcpy(to, &whole, bytes);
}

/* Crop, resize and mirror: [height][width][3] at `out` from the box (top, left, box_height,
 * box_width) of a picture of which `pixels` holds `columns` columns from row `row0` and column
 * `column0` on; only rows and columns within `limits` (first row, end, first column, end) are read.
 * Returns 0 if there is no memory. */
static int resample(const uint8_t *pixels, int64_t columns, int64_t row0, int64_t column0,
                    double top, double left, double box_height, double box_width,
                    const int64_t limits[4], int flip, uint8_t *out, int32_t height,
                    int32_t width) {
    Taps down = {0}, across = {0};
    const size_t length = (size_t)(limits[3] - limits[2]) * 3, line_size = length + 1;
    float *lines = calloc(line_size * 4, sizeof(float));
    int done = 0;
    if (lines &&
        make_taps(&down, top, box_height, (int32_t)limits[0], (int32_t)limits[1], height) &&
        make_taps(&across, left, box_width, (int32_t)limits[2], (int32_t)limits[3], width)) {
        const size_t stride = (size_t)columns * 3;
        const uint8_t *corner = pixels + (limits[2] - column0) * 3;
        /* Four rows at a time share the horizontal weights. */
        for (int32_t y = 0; y < height; y += 4) {
            const int32_t rows = height - y < 4 ? height - y : 4;
            for (int32_t i = 0; i < rows; i++)
                mix_rows(corner + (size_t)(down.first[y + i] - row0) * stride, stride,
                         down.count[y + i], down.weights + (size_t)(y + i) * down.most, length,
                         lines + i * line_size);
            uint8_t *to = out + (size_t)y * width * 3;
            for (int32_t column = 0; column < width; column++, to += 3) {
                const int32_t x = flip ? width - 1 - column : column;
                const float *weights = across.weights + (size_t)x * across.most;
                const float *at = lines + (across.first[x] - limits[2]) * 3;
                float4 sum0 = {0.5f, 0.5f, 0.5f, 0.5f}, sum1 = sum0, sum2 = sum0, sum3 = sum0;
                for (int32_t tap = 0; tap < across.count[x]; tap++, at += 3) {
                    sum0 += weights[tap] * load(at);
                    sum1 += weights[tap] * load(at + line_size);
                    sum2 += weights[tap] * load(at + 2 * line_size);
                    sum3 += weights[tap] * load(at + 3 * line_size);
                }
                /* The fourth byte is written over by the next pixel; the last has none. */
                const size_t bytes = column < width - 1 ? 4 : 3, row = (size_t)width * 3;
                if (bytes == 4) {
                    store(to, sum0, 4);
                    if (rows > 1) store(to + row, sum1, 4);
                    if (rows > 2) store(to + 2 * row, sum2, 4);
                    if (rows > 3) store(to + 3 * row, sum3, 4);
                } else {
                    store(to, sum0, 3);
                    if (rows > 1) store(to + row, sum1, 3);
                    if (rows > 2) store(to + 2 * row, sum2, 3);
                    if (rows > 3) store(to + 3 * row, sum3, 3);
                }
            }
        }
        done = 1;
    }
    free(lines);
    free_taps(&down);
    free_taps(&across);
    return done;
}

/* A box of the size asked for, bit for bit; `pixels` begins at its corner. */
static void copy(const uint8_t *pixels, int64_t columns, int flip, uint8_t *out, int32_t height,
                 int32_t width) {
    for (int32_t y = 0; y < height; y++, pixels += columns * 3, out += (size_t)width * 3) {
        if (!flip)
            memcpy(out, pixels, (size_t)width * 3);
        else
            for (int32_t x = 0; x < width; x++) memcpy(out + x * 3, pixels + (width - 1 - x) * 3, 3);
    }
}

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* How far from a result's pixel its source pixels lie, rounded up. */
static int64_t reach(double extent, int32_t out_size) {
    return (int64_t)ceil(extent > out_size ? extent / out_size : 1) + 1;
}

/* Fill `count` images of a batch.
 *
 * JPEGs much larger than asked for are decoded at a half, quarter or eighth of their size, as long
 * as the box keeps half as many pixels again as are given out along each side.
 *
 *   whole    FFCV's decoder
 *   data     the beton; sample i lies at pointer[i] and is size[i] bytes long
 *   mode     MODE_JPG, else raw pixels
 *   boxes    [count][4]: top, left, height, width within each image, may be fractions
 *   beyond   whether resizing may look at pixels beside the box, as if the whole image had been
 *            resized and then cropped
 *   flips    [count]: mirror left to right
 *   out      [count][out_height][out_width][3]
 *   scratch  as large as the largest image's pixels, one per thread
 *   status   [count]: 0 where an image was filled, else a code
 */
void tokenpool_decode_rows(WholeDecoder whole, const uint8_t *data, int64_t count,
                           const int64_t *pointer, const int64_t *size, const int64_t *height,
                           const int64_t *width, const uint8_t *mode, const double *boxes,
                           int32_t beyond, const uint8_t *flips, uint8_t *out, int32_t out_height,
                           int32_t out_width, uint8_t *scratch, int32_t *status) {
    for (int64_t i = 0; i < count; i++, out += (size_t)out_height * out_width * 3) {
        const double top = boxes[4 * i], left = boxes[4 * i + 1];
        const double box_height = boxes[4 * i + 2], box_width = boxes[4 * i + 3];
        const uint8_t *source = data + pointer[i];
        int64_t factor = 1;
        if (mode[i] == MODE_JPG)
            while (factor < 8 && box_height >= 3 * factor * out_height &&
                   box_width >= 3 * factor * out_width)
                factor *= 2;
        const int64_t rows = divide_up(height[i], factor), columns = divide_up(width[i], factor);
        const int64_t above = beyond ? reach(box_height, out_height) : 0;
        const int64_t beside = beyond ? reach(box_width, out_width) : 0;
        const int64_t limits[4] = {
            larger((int64_t)floor(top) - above, 0) / factor,
            smaller(divide_up((int64_t)ceil(top + box_height) + above, factor), rows),
            larger((int64_t)floor(left) - beside, 0) / factor,
            smaller(divide_up((int64_t)ceil(left + box_width) + beside, factor), columns)};
        /* Of the picture at its fraction: first column and row there are, columns, rows. */
        int64_t region[4] = {0, 0, columns, rows};
        const uint8_t *pixels = source;
        if (mode[i] == MODE_JPG) {
            const int64_t box_rows = limits[1] - limits[0], box_columns = limits[3] - limits[2];
            if (box_rows < rows || box_columns < columns)
                status[i] = tokenpool_decode_region(
                    source, size[i], width[i], height[i], factor, limits[2], limits[0],
                    box_columns, box_rows, scratch, region);
            else
                status[i] = whole(source, size[i], height[i], width[i], scratch, height[i],
                                  width[i], 0, 0, 1, factor, 0, 0);
            if (status[i]) continue;
            pixels = scratch;
        }
        status[i] = 0;
        if (box_height == out_height && box_width == out_width && factor == 1 &&
            top == floor(top) && left == floor(left))
            copy(pixels + (((int64_t)top - region[1]) * region[2] + (int64_t)left - region[0]) * 3,
                 region[2], flips[i], out, out_height, out_width);
        else if (!resample(pixels, region[2], region[1], region[0], top / factor, left / factor,
                           box_height / factor, box_width / factor, limits, flips[i], out,
                           out_height, out_width))
            status[i] = NO_MEMORY;
    }
}
