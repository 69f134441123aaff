//! Stand-in.
#![allow(missing_docs, clippy::too_many_arguments)]
use super::isa::Isa;
use super::philox::{Stream, keep_row};
use super::scratch::Scratch;
use crate::tensor::Dropout;

pub fn forward(
    isa: Isa,
    _s: &Scratch,
    stream: Stream,
    dropout: Dropout,
    heads: usize,
    qkv: &[f32],
    starts: &[u32],
    context: &mut [f32],
    lse: &mut [f32],
) {
    let tokens = *starts.last().unwrap() as usize;
    let h = context.len() / tokens;
    let d = h / heads;
    context.fill(0.0);
    let scale = 1.0 / (d as f32).sqrt();
    for s in 0..starts.len() - 1 {
        let (a, b) = (starts[s] as usize, starts[s + 1] as usize);
        for head in 0..heads {
            for q in a..b {
                let sc: Vec<f32> = (a..b)
                    .map(|k| {
                        (0..d)
                            .map(|i| qkv[q * 3 * h + head * d + i] * qkv[k * 3 * h + h + head * d + i])
                            .sum::<f32>()
                            * scale
                    })
                    .collect();
                let m = sc.iter().cloned().fold(f32::MIN, f32::max);
                let l = m + sc.iter().map(|x| (x - m).exp()).sum::<f32>().ln();
                lse[q * heads + head] = l;
                let mut keep = vec![1.0; b - a];
                keep_row(isa, stream, dropout, head as u32, (s as u32) << 16 | (q - a) as u32, 0, &mut keep);
                for k in a..b {
                    let p = (sc[k - a] - l).exp() * keep[k - a];
                    for i in 0..d {
                        context[q * h + head * d + i] += p * qkv[k * 3 * h + 2 * h + head * d + i];
                    }
                }
            }
        }
    }
}
pub fn backward(
    isa: Isa,
    _s: &Scratch,
    stream: Stream,
    dropout: Dropout,
    heads: usize,
    qkv: &[f32],
    starts: &[u32],
    lse: &[f32],
    d_context: &[f32],
    d_qkv: &mut [f32],
) {
    let tokens = *starts.last().unwrap() as usize;
    let h = d_context.len() / tokens;
    let d = h / heads;
    d_qkv.fill(0.0);
    let scale = 1.0 / (d as f32).sqrt();
    for s in 0..starts.len() - 1 {
        let (a, b) = (starts[s] as usize, starts[s + 1] as usize);
        for head in 0..heads {
            for q in a..b {
                let p: Vec<f32> = (a..b)
                    .map(|k| {
                        ((0..d)
                            .map(|i| qkv[q * 3 * h + head * d + i] * qkv[k * 3 * h + h + head * d + i])
                            .sum::<f32>()
                            * scale
                            - lse[q * heads + head])
                            .exp()
                    })
                    .collect();
                let mut keep = vec![1.0; b - a];
                keep_row(isa, stream, dropout, head as u32, (s as u32) << 16 | (q - a) as u32, 0, &mut keep);
                let dp: Vec<f32> = (a..b)
                    .map(|k| {
                        keep[k - a]
                            * (0..d)
                                .map(|i| {
                                    d_context[q * h + head * d + i] * qkv[k * 3 * h + 2 * h + head * d + i]
                                })
                                .sum::<f32>()
                    })
                    .collect();
                let delta: f32 = p.iter().zip(&dp).map(|(a, b)| a * b).sum();
                for k in a..b {
                    let ds = p[k - a] * (dp[k - a] - delta) * scale;
                    for i in 0..d {
                        d_qkv[q * 3 * h + head * d + i] += ds * qkv[k * 3 * h + h + head * d + i];
                        d_qkv[k * 3 * h + h + head * d + i] += ds * qkv[q * 3 * h + head * d + i];
                        d_qkv[k * 3 * h + 2 * h + head * d + i] +=
                            p[k - a] * keep[k - a] * d_context[q * h + head * d + i];
                    }
                }
            }
        }
    }
}
