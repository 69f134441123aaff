//! One GPU: its context, its one stream, its kernels, and the unsafe calls that move bytes and launch.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr,
    DriverError,
};
use cudarc::nvrtc::Ptx;

use super::arch::Arch;
use super::images::{Image, Images, Tools};
use super::launch::{Address, Kernels, Launch, TensorMap};
use super::probe;
use crate::backend::BackendError;

/// Columns of the boxes of a tensor map.
const BOX_COLUMNS: u32 = 64;

/// A GPU that is ready to run kernels. All its work is in one stream, in order.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    functions: HashMap<&'static str, CudaFunction>,
    name: String,
    processors: u32,
    shared: i32,
    kernels: Kernels,
    images: Images,
}

impl Device {
    /// The GPU of this number, with its kernels: those in the program, else compiled by `tools`.
    ///
    /// # Errors
    /// If there is no driver or no such GPU, or if there is neither an image of a kernel nor a compiler.
    pub fn new(number: usize, kernels: Kernels, tools: &Tools) -> Result<Self, BackendError> {
        let absent = |reason: String| BackendError::NoDevice { reason };
        let driver = probe::driver().map_err(absent)?;
        let driver = driver.ok_or_else(|| absent("the NVIDIA driver (libcuda) is not installed".into()))?;
        let Some(probed) = driver.devices.get(number) else {
            let count = driver.devices.len();
            return Err(absent(format!("there is no GPU {number}; the driver sees {count}")));
        };
        let arch = Arch::of_capability(probed.capability.0, probed.capability.1);
        if kernels == Kernels::Hopper && !arch.is_hopper() {
            return Err(absent(format!(
                "MTDNN_KERNELS=hopper asks for kernels for compute capability 9.0, and {} is {arch}; unset it, or set \
                 it to portable",
                probed.name
            )));
        }
        let images = Images::new(arch, kernels, tools).map_err(|error| absent(error.to_string()))?;
        let context = CudaContext::new(number).map_err(failed("opening the device"))?;
        // SAFETY: nothing has been allocated, there is one stream, and it orders all that touches memory.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let attribute = |which| context.attribute(which).map_err(failed("asking for an attribute"));
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let load = |image: &Image| {
            let binary = Ptx::from_binary(image.cubin.to_vec());
            context.load_module(binary).map_err(failed("loading the kernels"))
        };
        let modules = images.list.iter().map(load).collect::<Result<_, _>>()?;
        let (name, functions) = (probed.name.clone(), HashMap::new());
        Ok(Self { context, stream, modules, functions, name, processors, shared, kernels, images })
    }

    /// As NVIDIA calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its multiprocessors.
    pub fn processors(&self) -> u32 {
        self.processors
    }

    /// Which kernels it computes with.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Its kernels' images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Bytes of its second-level cache, through which all goes that its memory is read and written for.
    pub fn cache(&self) -> Result<usize, BackendError> {
        let attribute = self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
        Ok(attribute.map_err(failed("asking for an attribute"))? as usize)
    }

    /// Bytes of its memory that are free.
    pub fn free_memory(&self) -> Result<usize, BackendError> {
        Ok(self.context.mem_get_info().map_err(failed("asking for free memory"))?.0)
    }

    /// Memory of its own, zeroed; it starts at a multiple of 256 bytes.
    ///
    /// # Errors
    /// If there is not as much.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, BackendError> {
        // SAFETY: it is zeroed before anyone reads it.
        let bytes_of_it = match unsafe { self.stream.alloc::<u8>(bytes.max(1)) } {
            Ok(memory) => memory,
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(BackendError::OutOfMemory { bytes, available: Some(self.free_memory()?) });
            }
            Err(error) => return Err(failed("allocating memory")(error)),
        };
        let start = bytes_of_it.device_ptr(&self.stream).0;
        self.zero(start, bytes)?;
        Ok(Memory { start, bytes, _owner: bytes_of_it })
    }

    /// Queues a copy within the device's memory.
    pub fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: both lie within this device's memory, apart from each other.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying within the GPU"))
    }

    /// Queues a copy from memory that stays as it is until the copy is done: pinned memory, or before a
    /// [`Device::synchronize`].
    pub(super) fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), BackendError> {
        // SAFETY: `to` is within this device's memory, which the planner's spans guarantee, and `bytes` stays.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying to the GPU"))
    }

    /// Copies to the device's memory, and waits for it.
    pub fn write(&self, to: Address, bytes: &[u8]) -> Result<(), BackendError> {
        self.upload(to, bytes)?;
        self.synchronize()
    }

    /// Queues a copy to memory that is not looked at before the copy is done.
    pub(super) fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), BackendError> {
        // SAFETY: `from` is within this device's memory, and `bytes` is left alone until then.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }
            .map_err(failed("copying from the GPU"))
    }

    /// Queues the zeroing of memory.
    pub(super) fn zero(&self, at: Address, bytes: usize) -> Result<(), BackendError> {
        // The driver's manual does not say that nothing may be zeroed.
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: within this device's memory.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("zeroing memory"))
    }

    /// Waits until all that is queued is done; an error of a kernel shows here at the latest.
    pub fn synchronize(&self) -> Result<(), BackendError> {
        self.stream.synchronize().map_err(failed("running kernels"))
    }

    /// Queues a launch.
    pub fn launch(&mut self, launch: &Launch) -> Result<(), BackendError> {
        let function = self.function(launch.kernel)?.cu_function();
        // So that the struct lies as aligned as its tensor maps.
        #[repr(align(64))]
        struct Words([u64; 128]);
        let mut words = Words([0; 128]);
        let argument = launch.argument(encode)?;
        assert!(argument.len() <= size_of_val(&words), "{} takes too large a struct", launch.kernel);
        bytemuck::cast_slice_mut::<u64, u8>(&mut words.0)[..argument.len()].copy_from_slice(&argument);
        let mut arguments = [words.0.as_mut_ptr().cast::<c_void>()];
        let [x, y, z] = launch.grid;
        // SAFETY: the struct is the twin of what the kernel takes, and its addresses are of this device.
        unsafe {
            let stream = self.stream.cu_stream();
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                stream,
                &mut arguments,
            )
        }
        .map_err(|error| BackendError::Device {
            what: format!("launching {}", launch.kernel),
            error: text(error),
        })
    }

    /// Records launches as a graph that replays them all by one call.
    pub fn capture(&mut self, launches: &[Launch]) -> Result<Graph, BackendError> {
        // Kernels are looked up before: loading one within a capture would break it.
        for launch in launches {
            self.function(launch.kernel)?;
        }
        let what = "capturing a graph";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed(what))?;
        let launched = launches.iter().try_for_each(|launch| self.launch(launch));
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags_enum(0));
        launched?;
        let graph = graph.map_err(failed(what))?;
        if let Some(graph) = &graph {
            graph.upload().map_err(failed(what))?;
        }
        Ok(Graph(graph))
    }

    /// Marks a point in the stream.
    pub(super) fn event(&self, timing: bool) -> Result<CudaEvent, BackendError> {
        let flags = match timing {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        self.context.new_event(Some(flags)).map_err(failed("making an event"))
    }

    /// Marks the end of all that is queued so far.
    pub(super) fn record(&self, event: &CudaEvent) -> Result<(), BackendError> {
        event.record(&self.stream).map_err(failed("recording an event"))
    }

    /// Waits until an event has passed; one that was never recorded has.
    pub(super) fn wait(&self, event: &CudaEvent) -> Result<(), BackendError> {
        event.synchronize().map_err(failed("running kernels"))
    }

    /// Marks the end of all that is queued so far, to take the time from it or up to it.
    pub fn mark(&self) -> Result<Mark, BackendError> {
        let event = self.event(true)?;
        self.record(&event)?;
        Ok(Mark(event))
    }

    /// Milliseconds that `work` takes on the device, which it queues.
    pub fn milliseconds(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), BackendError>,
    ) -> Result<f32, BackendError> {
        let start = self.mark()?;
        work(self)?;
        self.mark()?.milliseconds_since(&start)
    }

    /// Page-locked memory of the host, which the device copies from and to by itself.
    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned, BackendError> {
        // SAFETY: a plain allocation; `Pinned` zeroes it and frees it.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed("allocating pinned memory"))?;
        let start = start.cast::<u8>();
        // SAFETY: just allocated with so many bytes.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, context: self.context.clone() })
    }

    fn function(&mut self, kernel: &'static str) -> Result<&CudaFunction, BackendError> {
        if !self.functions.contains_key(kernel) {
            let found = self.modules.iter().find_map(|module| module.load_function(kernel).ok());
            let function = found.unwrap_or_else(|| panic!("no module has a kernel {kernel}"));
            let fixed = function.shared_size_bytes().map_err(failed("asking for a kernel's memory"))?;
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, self.shared - fixed)
                .map_err(failed("allowing shared memory"))?;
            self.functions.insert(kernel, function);
        }
        Ok(&self.functions[kernel])
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The kernels are unloaded next.
        self.context.record_err(self.stream.synchronize());
    }
}

/// A point in what a device has been given to do.
pub struct Mark(CudaEvent);

impl Mark {
    /// Milliseconds of the device from an earlier mark to this one, which is waited for.
    pub fn milliseconds_since(&self, earlier: &Mark) -> Result<f32, BackendError> {
        earlier.0.elapsed_ms(&self.0).map_err(failed("running kernels"))
    }
}

/// Memory of the device.
pub struct Memory {
    /// Where it starts.
    pub start: Address,
    /// How much it is.
    pub bytes: usize,
    _owner: CudaSlice<u8>,
}

/// Launches that replay by one call.
pub struct Graph(Option<CudaGraph>);

impl Graph {
    /// Queues them all.
    pub fn launch(&self) -> Result<(), BackendError> {
        self.0.as_ref().map_or(Ok(()), |graph| graph.launch().map_err(failed("launching a graph")))
    }
}

/// Page-locked memory of the host.
pub(super) struct Pinned {
    start: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Pinned {
    /// Its bytes. Nothing that the device still copies from or to may be touched.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with so many bytes, and borrowed as a whole.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies may still be queued, where a run ends early.
        self.context.record_err(self.context.synchronize());
        // SAFETY: allocated by `Device::pinned`, freed once, and nothing uses it any more.
        self.context.record_err(unsafe { result::free_host(self.start.cast()) });
    }
}

/// The driver's tensor map: bf16 in boxes of 64 columns with the 128-byte swizzle.
fn encode(map: &TensorMap) -> Result<[u64; 16], BackendError> {
    let TensorMap { address, columns, rows, stride, box_rows } = *map;
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    let (dimensions, strides) = ([u64::from(columns), u64::from(rows)], [2 * u64::from(stride)]);
    let (box_dimensions, steps) = ([BOX_COLUMNS, box_rows], [1, 1]);
    // SAFETY: the arrays have an entry for each of two dimensions, strides for all but the first; the address is noted,
    // not read.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut encoded,
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut c_void,
            dimensions.as_ptr(),
            strides.as_ptr(),
            box_dimensions.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match result.result() {
        Ok(()) => Ok(encoded.opaque),
        Err(error) => {
            Err(BackendError::Device { what: format!("making a map of {map:?}"), error: text(error) })
        }
    }
}

/// Turns a failure of the driver into one that says what was being done.
pub(super) fn failed(what: &'static str) -> impl Fn(DriverError) -> BackendError {
    move |error| BackendError::Device { what: what.to_string(), error: text(error) }
}

fn text(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(said)) => format!("{}: {}", name.to_string_lossy(), said.to_string_lossy()),
        _ => format!("{error:?}"),
    }
}
