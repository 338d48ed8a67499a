/* Decodes a box of a JPEG with libjpeg-turbo: blocks outside it get no inverse transform.
 *
 * TurboJPEG, and so FFCV's decoder, knows only whole pictures. libjpeg-turbo's older interface can
 * skip rows above the box (their entropy coding is read, nothing more), leave out whole columns of
 * blocks beside it and stop below it. Built and bound by jpeg_region.py.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>
#include <setjmp.h>

/* What upsampling colour looks at around a pixel, in pixels: inside this margin, pictures cut by
 * the decoder differ from whole ones. */
enum { MARGIN = 2 };

enum { BROKEN = 1, OTHER_SIZE = 2, TRUNCATED = 3 };

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
