//! Memory that kernels run on, which shows what they do wrong with it.

use std::ffi::c_void;
use std::ptr;

use bytemuck::Pod;
use half::bf16;
use mtdnn_raw::backend::cuda::launch::Address;
use mtdnn_raw::tensor::DType;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// Every byte that nobody has written yet: NaN, be it read as f32 or as bf16.
const POISON: u8 = 0xff;
/// No access is allowed this far beside a buffer.
const GUARD: usize = 1 << 20;
/// What every value's start is a multiple of.
const ALIGNMENT: usize = 64;

/// The buffers of a test. Each ends where a page starts that must not be touched.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

/// One buffer, from `start`, within pages of its own.
struct Buffer {
    name: String,
    dtype: DType,
    start: *mut u8,
    bytes: usize,
    pages: *mut u8,
    page_bytes: usize,
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of numbers, rounded to bf16 where that is the `dtype`.
    pub fn floats(&mut self, name: &str, dtype: DType, values: &[f32]) -> Address {
        let address = self.poison(name, dtype, values.len());
        self.write_floats(address, values);
        address
    }

    /// A buffer of numbers that lies as a parameter may in the flat buffer: at any multiple of its elements' size.
    pub fn parameter(&mut self, name: &str, dtype: DType, values: &[f32]) -> Address {
        let address = self.add(name, dtype, values.len(), size_of_element(dtype));
        self.write_floats(address, values);
        address
    }

    /// A buffer of words.
    pub fn words(&mut self, name: &str, values: &[u32]) -> Address {
        let address = self.poison(name, DType::U32, values.len());
        self.write(address, values);
        address
    }

    /// A buffer of `len` elements that nobody has written.
    pub fn poison(&mut self, name: &str, dtype: DType, len: usize) -> Address {
        self.add(name, dtype, len, ALIGNMENT)
    }

    fn add(&mut self, name: &str, dtype: DType, len: usize, alignment: usize) -> Address {
        let buffer = Buffer::new(name, dtype, len * size_of_element(dtype), alignment);
        let address = buffer.start as Address;
        self.buffers.push(buffer);
        address
    }

    /// Writes the buffer that starts at `address`.
    pub fn write_floats(&self, address: Address, values: &[f32]) {
        match self.buffer(address).dtype {
            DType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
                self.write(address, &rounded);
            }
            DType::F32 => self.write(address, values),
            DType::U32 => panic!("{} holds words", self.buffer(address).name),
        }
    }

    /// The numbers of the buffer that starts at `address`.
    pub fn read_floats(&self, address: Address) -> Vec<f32> {
        let buffer = self.buffer(address);
        match buffer.dtype {
            DType::Bf16 => self.read::<bf16>(address, buffer.bytes / 2).into_iter().map(f32::from).collect(),
            DType::F32 => self.read(address, buffer.bytes / 4),
            DType::U32 => panic!("{} holds words", buffer.name),
        }
    }

    /// The words of the buffer that starts at `address`.
    pub fn read_words(&self, address: Address) -> Vec<u32> {
        self.read(address, self.buffer(address).bytes / 4)
    }

    /// Writes any part of a buffer.
    pub fn write<T: Pod>(&self, address: Address, values: &[T]) {
        let bytes = bytemuck::cast_slice::<T, u8>(values);
        let to = self.part(address, bytes.len());
        // SAFETY: the part lies within a buffer, to which there are no references.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Reads any part of a buffer.
    pub fn read<T: Pod>(&self, address: Address, len: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); len];
        let bytes = bytemuck::cast_slice_mut::<T, u8>(&mut values);
        let from = self.part(address, bytes.len());
        // SAFETY: the part lies within a buffer, and the values are no part of one.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        values
    }

    fn buffer(&self, address: Address) -> &Buffer {
        let found = self.buffers.iter().find(|buffer| buffer.start as Address == address);
        found.unwrap_or_else(|| panic!("no buffer starts at {address:#x}"))
    }

    /// The place of `bytes` bytes that lie in one buffer.
    fn part(&self, address: Address, bytes: usize) -> *mut u8 {
        let inside = |buffer: &&Buffer| {
            let start = buffer.start as Address;
            start <= address && address + bytes as u64 <= start + buffer.bytes as u64
        };
        let buffer = self.buffers.iter().find(inside);
        let buffer = buffer.unwrap_or_else(|| panic!("no buffer has {bytes} bytes at {address:#x}"));
        buffer.start.wrapping_add((address - buffer.start as Address) as usize)
    }

    /// The contents of all buffers.
    pub(super) fn save(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(|buffer| self.read(buffer.start as Address, buffer.bytes)).collect()
    }

    /// Puts back what was saved.
    pub(super) fn restore(&self, saved: &[Vec<u8>]) {
        for (buffer, bytes) in self.buffers.iter().zip(saved) {
            self.write(buffer.start as Address, bytes);
        }
    }

    /// Where contents differ first, if they do.
    pub(super) fn difference(&self, left: &[Vec<u8>], right: &[Vec<u8>]) -> Option<String> {
        let buffers = self.buffers.iter().zip(left.iter().zip(right));
        for (buffer, (left, right)) in buffers {
            if let Some(byte) = left.iter().zip(right).position(|(left, right)| left != right) {
                let element = byte / size_of_element(buffer.dtype);
                return Some(format!("{}[{element}]", buffer.name));
            }
        }
        None
    }

    /// The name of a buffer beside which something was written.
    pub(super) fn damaged(&self) -> Option<&str> {
        self.buffers.iter().find(|buffer| !buffer.is_intact()).map(|buffer| buffer.name.as_str())
    }

    /// What lies nearest to an address.
    pub(super) fn describe(&self, address: Address) -> Option<String> {
        let distance = |buffer: &&Buffer| {
            let start = buffer.start as Address;
            let end = start + buffer.bytes as u64;
            start.saturating_sub(address).max((address + 1).saturating_sub(end))
        };
        let buffer = self.buffers.iter().min_by_key(distance)?;
        if distance(&buffer) > GUARD as u64 {
            return None;
        }
        let offset = address as i64 - buffer.start as i64;
        Some(format!("byte {offset} of {}, which has {}", buffer.name, buffer.bytes))
    }
}

impl Buffer {
    fn new(name: &str, dtype: DType, bytes: usize, alignment: usize) -> Self {
        let page = rustix::param::page_size();
        let page_bytes = (bytes + alignment).next_multiple_of(page);
        let mapped = GUARD + page_bytes + GUARD;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address of the system's choice.
        let mapping = unsafe { mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::empty(), flags) };
        let pages = mapping.expect("memory for a buffer").cast::<u8>().wrapping_add(GUARD);
        // SAFETY: these pages lie within the mapping.
        let allowed = unsafe {
            mprotect(pages.cast::<c_void>(), page_bytes, MprotectFlags::READ | MprotectFlags::WRITE)
        };
        allowed.expect("memory for a buffer");
        // SAFETY: the pages may be written now.
        unsafe { pages.write_bytes(POISON, page_bytes) };
        // As near to the end as the alignment allows; the pages' end is a multiple of every alignment.
        let start = pages.wrapping_add(page_bytes - bytes.next_multiple_of(alignment));
        Self { name: name.to_string(), dtype, start, bytes, pages, page_bytes }
    }

    /// Whether the bytes beside it are as they were.
    fn is_intact(&self) -> bool {
        // SAFETY: no kernel runs now, and nothing else writes to the pages.
        let pages = unsafe { std::slice::from_raw_parts(self.pages, self.page_bytes) };
        let before = self.start as usize - self.pages as usize;
        let (head, rest) = pages.split_at(before);
        head.iter().chain(&rest[self.bytes..]).all(|&byte| byte == POISON)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mapping = self.pages.wrapping_sub(GUARD).cast::<c_void>();
        // SAFETY: the whole mapping, which nothing points into any more.
        let unmapped = unsafe { munmap(mapping, GUARD + self.page_bytes + GUARD) };
        unmapped.expect("the mapping is there");
    }
}

fn size_of_element(dtype: DType) -> usize {
    match dtype {
        DType::F32 | DType::U32 => 4,
        DType::Bf16 => 2,
    }
}
