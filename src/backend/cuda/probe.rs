//! Whether there is a driver, and what devices it has: a look that costs little and changes nothing.

use cudarc::driver::result::{self, device};
use cudarc::driver::sys::{self, CUdevice_attribute};

/// The driver of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The latest version of CUDA that it knows, major and minor.
    pub version: (u32, u32),
    /// In the order of their numbers.
    pub devices: Vec<Device>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As NVIDIA calls it.
    pub name: String,
    /// Its memory in bytes, what is in use included.
    pub memory: u64,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
}

/// What the driver says; none where there is no driver.
///
/// # Errors
/// The driver's own words, where it cannot tell of a device.
pub fn driver() -> Result<Option<Driver>, String> {
    // SAFETY: nothing but whether the library can be opened. Without it, every call below would panic.
    if !unsafe { sys::is_culib_present() } {
        return Ok(None);
    }
    let said = |error: result::DriverError| match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    };
    let mut version = 0;
    // SAFETY: it writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(said)?;
    let version = ((version / 1000) as u32, (version % 1000 / 10) as u32);
    match result::init() {
        Ok(()) => {}
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            return Ok(Some(Driver { version, devices: Vec::new() }));
        }
        Err(error) => return Err(said(error)),
    }
    let count = device::get_count().map_err(said)?;
    let devices = (0..count).map(|number| look(number).map_err(said)).collect::<Result<_, _>>()?;
    Ok(Some(Driver { version, devices }))
}

fn look(number: i32) -> Result<Device, result::DriverError> {
    use CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = device::get(number)?;
    // SAFETY: the driver has just named this device.
    let attribute = |which| unsafe { device::get_attribute(device, which) };
    // SAFETY: as above.
    let memory = unsafe { device::total_mem(device) }? as u64;
    let capability = (attribute(MAJOR)? as u32, attribute(MINOR)? as u32);
    Ok(Device { name: device::get_name(device)?, memory, capability })
}
