//! The fake cuBLASLt, in what the checks of the linear layer do not use: biases, batches, refusals, algorithms.

use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};

use crate::child;
use crate::device::Device;
use crate::emulator::probes;

#[test]
fn products_and_refusals() {
    let Some(folder) = probes().make() else { return };
    for schedule in [0, 3] {
        let outcome = child::run(&folder, schedule, "blas", &[]);
        assert!(outcome.status.success(), "{}", outcome.text);
    }
}

/// `d = gelu(a^T b + bias)` and the like: a is `[k, m]`, b `[k, n]`, column-major f32, `batch` of them.
struct Product {
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

const M: usize = 24;
const N: usize = 13;
const K: usize = 40;
const BATCH: usize = 2;

fn set<T: Copy>(desc: sys::cublasLtMatmulDesc_t, attribute: u32, value: T) {
    use sys::cublasLtMatmulDescAttributes_t::*;
    let attribute = match attribute {
        3 => CUBLASLT_MATMUL_DESC_TRANSA,
        7 => CUBLASLT_MATMUL_DESC_EPILOGUE,
        8 => CUBLASLT_MATMUL_DESC_BIAS_POINTER,
        11 => CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
        12 => CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
        13 => CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE,
        _ => unreachable!("not used here"),
    };
    let value: *const c_void = std::ptr::from_ref(&value).cast();
    // SAFETY: a live descriptor and a value that is read during the call.
    unsafe { result::set_matmul_desc_attribute(desc, attribute, value, size_of::<T>()) }
        .expect("an attribute of this size");
}

impl Product {
    fn new(kind: sys::cudaDataType, lds: [usize; 3]) -> Self {
        let handle = result::create_handle().expect("the fake opens");
        let f32s = sys::cudaDataType::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = result::create_matmul_desc(compute, f32s).expect("a descriptor");
        set(desc, 3, 1i32);
        let sizes = [(K, M), (K, N), (M, N)];
        let layouts = [0, 1, 2].map(|i| {
            let (rows, columns) = sizes[i];
            let kind = if i == 2 { f32s } else { kind };
            let layout =
                result::create_matrix_layout(kind, rows as u64, columns as u64, lds[i] as i64)
                    .expect("a layout");
            use sys::cublasLtMatrixLayoutAttribute_t::*;
            let (count, stride) = (BATCH as i32, (lds[i] * columns) as i64);
            // SAFETY: a live layout and values that are read during the call.
            unsafe {
                let count: *const c_void = std::ptr::from_ref(&count).cast();
                let attribute = CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
                result::set_matrix_layout_attribute(layout, attribute, count, 4).expect("a count");
                let stride: *const c_void = std::ptr::from_ref(&stride).cast();
                let attribute = CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
                result::set_matrix_layout_attribute(layout, attribute, stride, 8)
                    .expect("a stride");
            }
            layout
        });
        Self { handle, desc, layouts }
    }

    /// What the heuristic proposes with so much workspace.
    fn algorithms(
        &self,
        workspace: u64,
    ) -> Result<Vec<(sys::cublasLtMatmulAlgo_t, usize)>, Status> {
        let preference = result::create_matmul_pref().expect("a preference");
        let [a, b, d] = self.layouts;
        // SAFETY: plain numbers; live objects, and room for as many results as are asked for.
        unsafe {
            let mut found: [sys::cublasLtMatmulHeuristicResult_t; 8] = std::mem::zeroed();
            let mut len = 0;
            use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes: *const c_void = std::ptr::from_ref(&workspace).cast();
            let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, attribute, bytes, 8).expect("a size");
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.desc,
                a,
                b,
                d,
                d,
                preference,
                8,
                found.as_mut_ptr(),
                &mut len,
            );
            status.result().map_err(|CublasError(status)| status)?;
            Ok(found[..len as usize].iter().map(|one| (one.algo, one.workspaceSize)).collect())
        }
    }

    fn run(
        &self,
        [a, b, c, d]: [u64; 4],
        beta: f32,
        algo: &sys::cublasLtMatmulAlgo_t,
        workspace: (u64, usize),
    ) -> Status {
        let alpha = 2.0f32;
        // SAFETY: live objects; the fake looks whether matrices lie on the device.
        let done = unsafe {
            result::matmul(
                self.handle,
                self.desc,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                a as *const _,
                self.layouts[0],
                b as *const _,
                self.layouts[1],
                c as *const _,
                self.layouts[2],
                d as *mut _,
                self.layouts[2],
                algo,
                workspace.0 as *mut _,
                workspace.1,
                std::ptr::null_mut(),
            )
        };
        done.map_or_else(|CublasError(status)| status, |()| Status::CUBLAS_STATUS_SUCCESS)
    }
}

fn random(len: usize) -> Vec<f32> {
    let mut state = len as u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// Matrices on the device, and what they hold.
struct Data {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    bias: Vec<f32>,
    /// Of a, b, c, bias, the auxiliary matrix and the result.
    on_device: [u64; 6],
}

/// The child's half.
pub(crate) fn run() {
    let device = Device::open();
    let product = Product::new(sys::cudaDataType::CUDA_R_32F, [K, K, M]);
    let (a, b, c) = (random(BATCH * K * M), random(BATCH * K * N), random(BATCH * M * N));
    let (bias, none) = (random(M), vec![f32::NAN; BATCH * M * N]);
    let on_device = [&a, &b, &c, &bias, &none, &none].map(|values| device.upload(values));
    let data = Data { a, b, c, bias, on_device };
    epilogues(&device, &product, &data);
    algorithms(&device, &product, &data);
    refusals(&product, &data);
}

/// Default, BIAS, GELU, GELU_BIAS, GELU_AUX_BIAS, with and without C.
fn epilogues(device: &Device, product: &Product, data: &Data) {
    let Data { a, b, c, bias, on_device: [ga, gb, gc, gbias, aux, out] } = data;
    let (ga, gb, gc, out) = (*ga, *gb, *gc, *out);
    set(product.desc, 8, *gbias);
    set(product.desc, 11, *aux);
    set(product.desc, 12, M as i64);
    set(product.desc, 13, (M * N) as i64);
    let none = product.algorithms(0).expect("no workspace is fine");
    // beta 0 must not read C.
    assert!(none.len() > 1 && none.iter().all(|(_, workspace)| *workspace == 0));
    for (epilogue, biased, curved) in [
        (1u32, false, false),
        (4, true, false),
        (32, false, true),
        (36, true, true),
        (164, true, true),
    ] {
        set(product.desc, 7, epilogue);
        for beta in [0.0f32, 0.5] {
            let added = if beta == 0.0 { device.upload(&[f32::NAN]) } else { gc };
            let status = product.run([ga, gb, added, out], beta, &none[0].0, (0, 0));
            assert_eq!(status, Status::CUBLAS_STATUS_SUCCESS, "epilogue {epilogue}");
            let (found, kept) =
                (device.download(out, BATCH * M * N), device.download(*aux, BATCH * M * N));
            for at in 0..BATCH * M * N {
                let (i, j, batch) = (at % M, at / M % N, at / (M * N));
                let term = |k: usize| {
                    f64::from(a[batch * K * M + i * K + k])
                        * f64::from(b[batch * K * N + j * K + k])
                };
                let mut value = 2.0 * (0..K).map(term).sum::<f64>();
                value += f64::from(beta) * f64::from(if beta == 0.0 { 0.0 } else { c[at] });
                value += if biased { f64::from(bias[i]) } else { 0.0 };
                if epilogue == 164 {
                    assert!((f64::from(kept[at]) - value).abs() < 1e-5, "before GELU");
                }
                let value = if curved { gelu(value) } else { value };
                assert!((f64::from(found[at]) - value).abs() < 1e-5, "epilogue {epilogue} at {at}");
            }
        }
    }
}

/// Algorithms sum in other orders and need their workspace.
fn algorithms(device: &Device, product: &Product, data: &Data) {
    let [ga, gb, gc, _, _, out] = data.on_device;
    set(product.desc, 7, 1u32);
    let all = product.algorithms(1 << 20).expect("algorithms");
    let large = device.alloc(1 << 20).expect("memory");
    let mut results = Vec::new();
    for (algo, workspace) in &all {
        let pointers = [ga, gb, gc, out];
        if *workspace > 0 {
            let status = product.run(pointers, 0.0, algo, (large, workspace - 1));
            assert_eq!(status, Status::CUBLAS_STATUS_INVALID_VALUE, "a byte too few");
        }
        let status = product.run(pointers, 0.0, algo, (large, *workspace));
        assert_eq!(status, Status::CUBLAS_STATUS_SUCCESS);
        results.push(device.download(out, BATCH * M * N));
    }
    assert!(results.iter().any(|result| *result != results[0]), "algorithms differ in bits");
}

/// What overlaps, what is too short, what is not aligned as promised.
fn refusals(product: &Product, data: &Data) {
    let [ga, gb, gc, _, _, out] = data.on_device;
    let f32s = sys::cudaDataType::CUDA_R_32F;
    let none = product.algorithms(0).expect("no workspace is fine");
    let failed = Status::CUBLAS_STATUS_EXECUTION_FAILED;
    assert_eq!(product.run([ga, gb, gc, ga], 0.0, &none[0].0, (0, 0)), failed, "D over A");
    assert_eq!(product.run([ga + 4, gb, gc, out], 0.0, &none[0].0, (0, 0)), failed, "A is short");
    let narrow = Product::new(f32s, [K - 1, K, M]);
    assert_eq!(narrow.algorithms(0).err(), Some(Status::CUBLAS_STATUS_INVALID_VALUE));
    let half = Product::new(sys::cudaDataType::CUDA_R_16BF, [K, K, M]);
    let algos = half.algorithms(0).expect("aligned matrices");
    let status = half.run([ga + 2, gb, gc, out], 0.0, &algos[0].0, (0, 0));
    assert_eq!(status, Status::CUBLAS_STATUS_NOT_SUPPORTED, "A is not at 16 bytes");
}
