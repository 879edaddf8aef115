//! A configuration as checkpoints' metadata hold it: what is usual is left out, so that equal training made equal bytes
//! before there was anything unusual, and still does.

use super::{Activation, PixelStatistics, VitConfig, usual_heads};
use serde::{Deserialize, Serialize};

/// The fields; those beyond the first six only where they are not the usual.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    dim: i64,
    depth: i64,
    mlp_dim: i64,
    patch: i64,
    grid: i64,
    layer_scale: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) heads: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) eps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) activation: Option<Activation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_norm: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patch_bias: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projection: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pixels: Option<PixelStatistics>,
}

impl From<VitConfig> for Written {
    fn from(config: VitConfig) -> Written {
        let usual = VitConfig::default();
        let VitConfig { dim, depth, mlp_dim, patch, grid, layer_scale, projection, .. } = config;
        Written {
            dim,
            depth,
            mlp_dim,
            patch,
            grid,
            layer_scale,
            heads: (usual_heads(dim) != Some(config.heads)).then_some(config.heads),
            eps: (config.eps != usual.eps).then_some(config.eps),
            activation: (config.activation != usual.activation).then_some(config.activation),
            pre_norm: config.pre_norm.then_some(true),
            patch_bias: (!config.patch_bias).then_some(false),
            projection,
            pixels: (config.pixels != usual.pixels).then_some(config.pixels),
        }
    }
}

impl TryFrom<Written> for VitConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<VitConfig, String> {
        let usual = VitConfig::default();
        let Written { dim, depth, mlp_dim, patch, grid, layer_scale, projection, .. } = written;
        let heads = written.heads.or_else(|| usual_heads(dim));
        Ok(VitConfig {
            dim,
            depth,
            heads: heads.ok_or_else(|| format!("an encoder {dim} wide needs `heads`"))?,
            mlp_dim,
            patch,
            grid,
            layer_scale,
            eps: written.eps.unwrap_or(usual.eps),
            activation: written.activation.unwrap_or(usual.activation),
            pre_norm: written.pre_norm.unwrap_or(usual.pre_norm),
            patch_bias: written.patch_bias.unwrap_or(usual.patch_bias),
            projection,
            pixels: written.pixels.unwrap_or(usual.pixels),
        })
    }
}
