//! JPEG as libjpeg-turbo decodes it. Two decoders of one file may differ: the standard leaves the rounding of the inverse
//! transform and the way back from halved colour channels to them. Published accuracies were measured through Pillow,
//! which is libjpeg-turbo with its slow integer transform and its smooth ("fancy") upsampling. mozjpeg shares that
//! decoder; in plain C it gives the same bytes, and `docs/datasets.md` says what a decoder of its own made of them.

use super::image::{RgbImage, SIDE_MAX};
use anyhow::{Result, anyhow, bail, ensure};
use mozjpeg::{ColorSpace, Decompress};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Decodes a JPEG; none where its colours are CMYK, which libjpeg leaves to others.
pub fn decode(bytes: &[u8]) -> Result<Option<RgbImage>> {
    ensure!(is_whole(bytes), "it was cut off: it has no end mark");
    // libjpeg leaves a file that it cannot read by its error handler, which unwinds as a panic does.
    catch_unwind(AssertUnwindSafe(|| decode_rgb(bytes))).unwrap_or_else(|thrown| {
        let told = thrown.downcast_ref::<String>().map_or("no reason was given", String::as_str);
        Err(anyhow!("it is damaged: {told}"))
    })
}

fn decode_rgb(bytes: &[u8]) -> Result<Option<RgbImage>> {
    let header = Decompress::new_mem(bytes)?;
    let (width, height) = header.size();
    ensure!(width > 0 && height > 0, "it has no pixels");
    if width.max(height) > SIDE_MAX as usize {
        bail!("it is {width} × {height} pixels large; {SIDE_MAX} a side are read");
    }
    if matches!(header.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Ok(None);
    }
    let mut started = header.rgb()?;
    let pixels = started.read_scanlines::<u8>()?;
    started.finish()?;
    ensure!(pixels.len() == width * height * 3, "it holds {} of {} bytes", pixels.len(), width * height * 3);
    Ok(Some(RgbImage { width, height, pixels }))
}

/// Whether a JPEG goes on to its end mark. The decoder fills what is missing with grey and says nothing; Pillow refuses
/// such a file, and training on grey would be no better.
fn is_whole(bytes: &[u8]) -> bool {
    const MARK: u8 = 0xff;
    const SCAN: u8 = 0xda;
    const END: u8 = 0xd9;
    // Past the segments before the first scan: a thumbnail in one of them has an end mark of its own.
    let mut at = 2;
    while let Some([MARK, kind, high, low]) = bytes.get(at..at + 4) {
        match *kind {
            // A byte of filling.
            MARK => at += 1,
            kind => {
                at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
                if kind == SCAN {
                    break;
                }
            }
        }
    }
    // In a scan the mark's byte is followed by 0 unless it is one.
    bytes.get(at..).is_some_and(|rest| rest.windows(2).rev().any(|pair| pair == [MARK, END]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, GrayImage, ImageFormat};
    use std::io::Cursor;

    #[test]
    fn what_libjpeg_refuses_is_an_error_and_not_the_end_of_the_process() {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(GrayImage::new(9, 7)).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let mut bytes = bytes.into_inner();
        assert_eq!(decode(&bytes).unwrap().map(|image| (image.width, image.height)), Some((9, 7)));
        // The frame's header: mark, length, bits a sample, height, width.
        let frame = bytes.windows(2).position(|mark| mark == [0xff, 0xc0]).unwrap();
        bytes[frame + 4] = 99;
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("it is damaged: ") && error.contains("99"), "{error}");
        bytes[frame + 4] = 8;
        bytes[frame + 5] = 0xff;
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("16384 a side are read"), "{error}");
    }
}
