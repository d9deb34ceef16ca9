//! Sixteen f32 values that are worked on together, by instruction set.
//!
//! The products of [`super::products`] keep many of them in registers, which the compiler does not manage from loops
//! over arrays. All three do the same in the same order; with fused multiply-adds also to the same bits.

use crate::cpu::simd::{LANES, fold};

/// Sixteen values.
pub(super) trait Vector: Copy {
    /// Zeros.
    ///
    /// # Safety
    /// This and all others: the machine has the instructions.
    unsafe fn zero() -> Self;
    /// The same value everywhere.
    unsafe fn splat(value: f32) -> Self;
    /// The 16 values from `at` on, of any alignment.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes the 16 values.
    unsafe fn store(self, to: *mut f32);
    /// `self * b + c`
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;

    /// The sum of the 16 values, in the order of [`fold`].
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: as for the others.
        unsafe { self.store(lanes.as_mut_ptr()) };
        fold(lanes, |a, b| a + b)
    }

    /// Four sums at once, the same as one by one.
    #[inline(always)]
    unsafe fn sums(of: [Self; 4]) -> [f32; 4] {
        // SAFETY: as for the others.
        of.map(|of| unsafe { of.sum() })
    }
}

/// Plain arrays: for instruction sets without a type of their own here.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Vector for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { at.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, mut c: Self) -> Self {
        const FMA: bool = cfg!(target_arch = "aarch64");
        for ((c, a), b) in c.0.iter_mut().zip(self.0).zip(b.0) {
            *c = crate::cpu::simd::fma::<FMA>(a, b, *c);
        }
        c
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm_add_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_shuffle_ps, _mm_storeu_ps,
        _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_castps512_ps256, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::Vector;

    /// The sums of four times 8 values: the last three steps of `fold`, side by side.
    ///
    /// # Safety
    /// The machine has AVX.
    #[inline(always)]
    unsafe fn sums(of: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b, c, d] =
                of.map(|v| _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)));
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
            let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(even, odd));
            sums
        }
    }

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    impl Vector for Avx512 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise, here and below.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_loadu_ps(at) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn sums(of: [Self; 4]) -> [f32; 4] {
            // SAFETY: as above.
            unsafe {
                sums(of.map(|v| {
                    let low = _mm512_castps512_ps256(v.0);
                    _mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(v.0))
                }))
            }
        }
    }

    /// Two registers of AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    impl Vector for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise, here and below.
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }

        #[inline(always)]
        unsafe fn sums(of: [Self; 4]) -> [f32; 4] {
            // SAFETY: as above.
            unsafe { sums(of.map(|v| _mm256_add_ps(v.0, v.1))) }
        }
    }
}
