//! A plan that TensorRT has loaded, its buffers on the GPU, and the stream that its batches run on.

use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtrMut, DriverError};
use onnx_export::DataType;
use trtx::{CudaEngine, ExecutionContext, Runtime};

use super::compiled::{Compiled, configure};
use super::glue::{dims, dtype_of, logger, misdescribed, open_library, refused, sizes};
use super::refit;
use crate::RuntimeError;
#[cfg(not(feature = "tensorrt-enterprise"))]
use crate::cache::CacheFile;
use crate::check::Fit;
use crate::description::InputShape;
use crate::engine::CudaGraphs;
use crate::recent::Recent;
use crate::tensor::{Input, Output, floats, volume, width};
use crate::weights::Weights;

/// Shapes whose graphs are kept. Texts come in few shapes, as batches are padded; a graph of a BERT takes some megabytes.
const GRAPHS: usize = 16;
/// Everything that a plan is loaded with.
pub(crate) struct Loading {
    /// Its bytes, which were checked.
    pub(crate) plan: Vec<u8>,
    /// What a stripped plan is to get.
    pub(crate) weights: Option<Weights>,
    /// What runs it.
    pub(crate) fit: Fit,
    /// The number of the GPU.
    pub(crate) device: usize,
    /// Whether work is recorded.
    pub(crate) cuda_graphs: CudaGraphs,
    /// Where compiled kernels are kept.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub(crate) cache: Option<CacheFile>,
    /// The inputs of each profile, as described.
    pub(crate) profiles: Vec<Vec<InputShape>>,
    /// The outputs, as described.
    pub(crate) outputs: Vec<String>,
}

/// A loaded plan. Fields are dropped from the first to the last: what uses something comes before it.
pub(crate) struct Session {
    graphs: Recent<Shapes, Recording>,
    contexts: Vec<ExecutionContext<'static>>,
    compiled: Compiled,
    _engine: CudaEngine<'static>,
    _runtime: Runtime<'static>,
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    stream: Arc<CudaStream>,
    cuda_graphs: CudaGraphs,
}

/// A profile and the dimensions of its inputs.
type Shapes = (usize, Vec<Vec<usize>>);

/// What is known of a shape.
enum Recording {
    /// It ran once: kernels are chosen, and a second batch can be recorded.
    Ran,
    /// It is recorded.
    Graph(CudaGraph),
    /// It cannot be recorded.
    Refused,
}

/// One input or output, in the GPU's memory.
struct Buffer {
    name: String,
    dtype: DataType,
    memory: CudaSlice<u8>,
}

impl Session {
    /// Has TensorRT load the plan, in the thread that will run it.
    pub(crate) fn load(loading: Loading) -> Result<Self, RuntimeError> {
        let cuda = CudaContext::new(loading.device).map_err(cuda("open the GPU"))?;
        cuda.bind_to_thread().map_err(self::cuda("open the GPU"))?;
        // SAFETY: tracking is for buffers that several streams share; all of this engine's are used on the one below.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.new_stream().map_err(self::cuda("create a stream"))?;
        open_library(&loading.fit.library)?;
        let logger = logger()?;
        let mut runtime = Runtime::new(logger).map_err(refused("start"))?;
        #[cfg(not(feature = "tensorrt-enterprise"))]
        judge(&runtime, &loading.plan)?;
        let mut engine = runtime.deserialize_cuda_engine(&loading.plan).map_err(refused("load the plan"))?;
        drop(loading.plan);
        if let Some(weights) = &loading.weights {
            refit::refit(&engine, logger, weights)?;
        }
        #[cfg(not(feature = "tensorrt-enterprise"))]
        let (config, compiled) = configure(&mut engine, loading.cuda_graphs, loading.cache)?;
        #[cfg(feature = "tensorrt-enterprise")]
        let (config, compiled) = configure(&mut engine, loading.cuda_graphs)?;
        let mut contexts = Vec::new();
        let count = engine.nb_optimization_profiles().map_err(refused("count its profiles"))?;
        if usize::try_from(count) != Ok(loading.profiles.len()) {
            return Err(misdescribed(&format!("{count} profiles, not {}", loading.profiles.len())));
        }
        for profile in 0..count {
            let mut context = engine
                .create_execution_context_with_config(Rc::clone(&config))
                .map_err(refused("make room to run"))?;
            // SAFETY: the stream lives as long as the session.
            let chosen = unsafe { context.set_optimization_profile_async(profile, handle(&stream)) };
            if !chosen {
                return Err(refused("choose a profile")(trtx::Error::Runtime("it said no".to_owned())));
            }
            contexts.push(context);
        }
        stream.synchronize().map_err(self::cuda("choose a profile"))?;
        let (inputs, outputs) =
            buffers(&engine, &mut contexts, &loading.profiles, &loading.outputs, &stream)?;
        let mut session = Self {
            graphs: Recent::new(GRAPHS),
            contexts,
            compiled,
            _engine: engine,
            _runtime: runtime,
            inputs,
            outputs,
            stream,
            cuda_graphs: loading.cuda_graphs,
        };
        session.bind()?;
        Ok(session)
    }

    /// Tells each context where its inputs and outputs are. They never move, so that recorded work stays right.
    fn bind(&mut self) -> Result<(), RuntimeError> {
        for buffer in self.inputs.iter_mut().chain(&mut self.outputs) {
            let (address, _sync) = buffer.memory.device_ptr_mut(&self.stream);
            for context in &mut self.contexts {
                // SAFETY: the memory is the session's, is of the size that the largest shape needs, and outlives the context.
                unsafe { context.set_tensor_address(&buffer.name, address as *mut c_void) }
                    .map_err(refused("take its buffers"))?;
            }
        }
        Ok(())
    }

    /// Runs a batch whose sizes are within the profile.
    pub(crate) fn run(&mut self, profile: usize, batch: &[Input]) -> Result<Vec<Output>, RuntimeError> {
        let context = self.contexts.get_mut(profile).ok_or(RuntimeError::Ended)?;
        let mut shapes = Vec::new();
        for buffer in &mut self.inputs {
            let input = batch.iter().find(|input| input.name == buffer.name);
            let input = input.ok_or_else(|| RuntimeError::Batch(format!("no `{}`", buffer.name)))?;
            let bytes = input.bytes(buffer.dtype)?;
            if !bytes.is_empty() {
                let mut room = buffer.memory.slice_mut(..bytes.len());
                self.stream.memcpy_htod(&bytes, &mut room).map_err(cuda("copy an input"))?;
            }
            context.set_input_shape(&buffer.name, &dims(&input.shape)).map_err(refused("take a shape"))?;
            shapes.push(input.shape.clone());
        }
        let key = (profile, shapes);
        let is_new = self.graphs.get(&key).is_none();
        let done = enqueue(context, &self.stream, &mut self.graphs, key, self.cuda_graphs);
        let outputs = done.and_then(|()| {
            let outputs = self.outputs.iter();
            let copied: Result<Vec<_>, _> =
                outputs.map(|buffer| fetch(context, buffer, &self.stream)).collect();
            self.stream.synchronize().map_err(cuda("run the batch"))?;
            copied
        });
        let outputs = match outputs {
            Ok(outputs) => outputs.into_iter().map(Fetched::floats).collect(),
            Err(error) => {
                // Whatever still runs reads and writes buffers that the next batch will use.
                let _ = self.stream.synchronize();
                return Err(error);
            }
        };
        self.compiled.ran(is_new);
        outputs
    }

    /// Keeps what was compiled; called before the session ends.
    pub(crate) fn keep_compiled(&mut self) {
        self.compiled.keep();
    }
}

/// Hands the work over, or replays what was recorded for these shapes.
fn enqueue(
    context: &mut ExecutionContext<'static>,
    stream: &Arc<CudaStream>,
    graphs: &mut Recent<Shapes, Recording>,
    key: Shapes,
    cuda_graphs: CudaGraphs,
) -> Result<(), RuntimeError> {
    let known = graphs.get(&key);
    if let Some(Recording::Graph(graph)) = &known {
        return graph.launch().map_err(cuda("replay a graph"));
    }
    let ran = matches!(known, Some(Recording::Ran));
    let is_new = known.is_none();
    if ran && cuda_graphs == CudaGraphs::Recorded {
        match record(context, stream) {
            Ok(graph) => {
                let launched = graph.launch().map_err(cuda("replay a graph"));
                graphs.put(key, Recording::Graph(graph));
                return launched;
            }
            Err(error) => {
                tracing::warn!(cause = %error, "this engine's work cannot be recorded; it runs without");
                graphs.put(key, Recording::Refused);
            }
        }
    } else if is_new {
        graphs.put(key, Recording::Ran);
    }
    // SAFETY: the stream and all addresses are the session's, and every input has a shape.
    unsafe { context.enqueue_v3(handle(stream)) }.map_err(refused("run the batch"))
}

fn record(
    context: &mut ExecutionContext<'static>,
    stream: &Arc<CudaStream>,
) -> Result<CudaGraph, RuntimeError> {
    let doing = "record a batch";
    // Other threads of the process may use CUDA meanwhile.
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(cuda(doing))?;
    // SAFETY: as where a batch runs.
    let enqueued = unsafe { context.enqueue_v3(handle(stream)) }.map_err(refused(doing));
    // A recording is ended whatever came of it, or the stream could not be used again.
    let ended = stream.end_capture(CUgraphInstantiate_flags(0)).map_err(cuda(doing));
    enqueued?;
    ended?.ok_or_else(|| RuntimeError::Cuda { doing, reason: "nothing was recorded".to_owned() })
}

/// An output in host memory, which the GPU may still be writing.
struct Fetched<'a> {
    buffer: &'a Buffer,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn fetch<'a>(
    context: &ExecutionContext<'static>,
    buffer: &'a Buffer,
    stream: &Arc<CudaStream>,
) -> Result<Fetched<'a>, RuntimeError> {
    let name = &buffer.name;
    let found = context.tensor_shape(name).map_err(refused("tell a shape"))?;
    let shape = sizes(&found).ok_or_else(|| misdescribed(&format!("an output `{name}` of unknown shape")))?;
    let length = volume(&shape).and_then(|volume| volume.checked_mul(width(buffer.dtype)));
    let length = length.filter(|length| *length <= buffer.memory.len());
    let length =
        length.ok_or_else(|| misdescribed(&format!("an output `{name}` of {shape:?}, too large")))?;
    let mut bytes = vec![0; length];
    if length > 0 {
        stream.memcpy_dtoh(&buffer.memory.slice(..length), &mut bytes).map_err(cuda("copy an output"))?;
    }
    Ok(Fetched { buffer, shape, bytes })
}

impl Fetched<'_> {
    fn floats(self) -> Result<Output, RuntimeError> {
        let Buffer { name, dtype, .. } = self.buffer;
        let values = floats(&self.bytes, *dtype)
            .ok_or_else(|| misdescribed(&format!("an output `{name}` of {dtype:?}, which is no float")))?;
        Ok(Output { name: name.clone(), shape: self.shape, values })
    }
}

/// Makes room for every input and output, as much as the largest shape of any profile needs.
fn buffers(
    engine: &CudaEngine<'static>,
    contexts: &mut [ExecutionContext<'static>],
    profiles: &[Vec<InputShape>],
    outputs: &[String],
    stream: &Arc<CudaStream>,
) -> Result<(Vec<Buffer>, Vec<Buffer>), RuntimeError> {
    let has = |name: &String, names: &[String]| {
        if names.contains(name) { Ok(()) } else { Err(misdescribed(&format!("no `{name}`"))) }
    };
    let found_inputs: Vec<String> =
        engine.input_tensor_names().map_err(refused("list its inputs"))?.collect();
    let found_outputs: Vec<String> =
        engine.output_tensor_names().map_err(refused("list its outputs"))?.collect();
    let described: Vec<String> = profiles.iter().flatten().map(|input| input.name.clone()).collect();
    found_inputs.iter().try_for_each(|name| has(name, &described))?;
    described.iter().try_for_each(|name| has(name, &found_inputs))?;
    outputs.iter().try_for_each(|name| has(name, &found_outputs))?;
    // TensorRT wants a place for every output, also for those that nobody asks for.
    found_outputs.iter().try_for_each(|name| has(name, outputs))?;
    let mut output_bytes = vec![0_usize; outputs.len()];
    for (context, profile) in contexts.iter_mut().zip(profiles) {
        for input in profile {
            let most: Vec<usize> = input.dims.iter().map(|span| span.max as usize).collect();
            context.set_input_shape(&input.name, &dims(&most)).map_err(refused("take its largest shape"))?;
        }
        for (bytes, name) in output_bytes.iter_mut().zip(outputs) {
            let most = context.max_output_size(name).map_err(refused("tell its largest output"))?;
            let most = usize::try_from(most).map_err(|_| misdescribed(&format!("`{name}` of no limit")))?;
            *bytes = (*bytes).max(most);
        }
    }
    let buffer = |name: &String, bytes: usize| {
        let dtype = engine.tensor_data_type(name).map_err(refused("tell a type"))?;
        let dtype = dtype_of(dtype).ok_or_else(|| misdescribed(&format!("`{name}` of {dtype:?}")))?;
        // An address is asked for of what is empty, too.
        let memory = stream.alloc_zeros(bytes.max(1)).map_err(cuda("take memory for inputs and outputs"))?;
        Ok(Buffer { name: name.clone(), dtype, memory })
    };
    let input_bytes = |name: &String| {
        let sizes = profiles.iter().flatten().filter(|input| input.name == *name).map(|input| {
            let most: Vec<usize> = input.dims.iter().map(|span| span.max as usize).collect();
            volume(&most).and_then(|volume| volume.checked_mul(8)).unwrap_or(usize::MAX)
        });
        sizes.max().unwrap_or_default()
    };
    let inputs = found_inputs.iter().map(|name| buffer(name, input_bytes(name))).collect::<Result<_, _>>()?;
    let outputs = outputs.iter().zip(output_bytes).map(|(name, bytes)| buffer(name, bytes));
    Ok((inputs, outputs.collect::<Result<_, _>>()?))
}

fn cuda(doing: &'static str) -> impl FnOnce(DriverError) -> RuntimeError {
    move |error| RuntimeError::Cuda { doing, reason: error.to_string() }
}

fn handle(stream: &CudaStream) -> *mut c_void {
    stream.cu_stream().cast()
}

/// Asks TensorRT-RTX what it thinks of the plan's header, which it says more of than when it fails to load it.
#[cfg(not(feature = "tensorrt-enterprise"))]
fn judge(runtime: &Runtime<'static>, plan: &[u8]) -> Result<(), RuntimeError> {
    use trtx::EngineValidity;

    let (validity, why) = runtime.engine_validity(plan).map_err(refused("read the plan's header"))?;
    if validity == EngineValidity::kINVALID {
        let reason = trtx::Error::Runtime(format!("its header says that it does not run here ({why:?})"));
        return Err(refused("load the plan")(reason));
    }
    Ok(())
}
