//! From files into parameters, and parameters as tensors to write.

use std::path::Path;

use aim_tensor::io::TensorSource;
use aim_tensor::io::safetensors::{SafeTensors, TensorRef};
use aim_tensor::{ParamLayout, Parameters};

use crate::error::ModelError;

/// Fills every parameter from a file, converting to f32. Tensors that the layout lacks are left alone; their names
/// are returned.
///
/// # Errors
/// When a parameter is missing in the file, or has another shape or a type that is no float.
pub fn load(
    params: &mut Parameters,
    file: &(impl TensorSource + ?Sized),
    path: &Path,
) -> Result<Vec<String>, ModelError> {
    let layout = params.layout().clone();
    load_some(params, file, path, |_| true)?;
    Ok(file.names().filter(|name| layout.id(name).is_none()).map(str::to_owned).collect())
}

/// As [`load`], of the parameters whose name `wanted` agrees to.
///
/// # Errors
/// As [`load`].
pub fn load_some(
    params: &mut Parameters,
    file: &(impl TensorSource + ?Sized),
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let layout = params.layout().clone();
    for param in layout.iter().filter(|param| wanted(&param.spec.name)) {
        let Some(id) = layout.id(&param.spec.name) else { continue };
        let name = &param.spec.name;
        let wrong = |found: String| ModelError::BadWeight {
            path: path.to_owned(),
            name: name.clone(),
            expected: param.spec.shape.to_string(),
            found,
        };
        let Some(shape) = file.shape(name) else {
            return Err(wrong("no such tensor".into()));
        };
        if shape != param.spec.shape.dims() {
            return Err(wrong(format!("{shape:?}")));
        }
        let destination = params.value_mut(id);
        file.copy_to_f32(name, destination).map_err(aim_tensor::TensorError::from)?;
    }
    Ok(())
}

/// All parameters as tensors to write, by name.
pub fn tensors(params: &Parameters) -> Vec<TensorRef<'_>> {
    refs(params.layout(), params.values())
}

/// Values laid out like the parameters, such as an optimizer's moments, as tensors to write. Parameters beyond the
/// end of `values` (frozen ones) are left out.
pub fn refs<'a>(layout: &'a ParamLayout, values: &'a [f32]) -> Vec<TensorRef<'a>> {
    layout
        .iter()
        .filter(|p| p.range.end <= values.len())
        .map(|p| TensorRef::f32(&p.spec.name, p.spec.shape.dims(), &values[p.range.clone()]))
        .collect()
}

/// Fills values laid out like the parameters from a file; see [`refs`].
///
/// # Errors
/// As [`load`].
pub fn load_like(
    layout: &ParamLayout,
    values: &mut [f32],
    file: &SafeTensors,
    path: &Path,
) -> Result<(), ModelError> {
    let len = values.len();
    for param in layout.iter().filter(|p| p.range.end <= len) {
        let view = file.tensor(&param.spec.name).map_err(aim_tensor::TensorError::from)?;
        if view.shape != param.spec.shape.dims() {
            return Err(ModelError::BadWeight {
                path: path.to_owned(),
                name: param.spec.name.clone(),
                expected: param.spec.shape.to_string(),
                found: format!("{:?}", view.shape),
            });
        }
        view.copy_to_f32(&mut values[param.range.clone()])
            .map_err(aim_tensor::TensorError::from)?;
    }
    Ok(())
}
