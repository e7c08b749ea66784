//! A plan that TensorRT has loaded, its buffers on the GPU, and the stream that its batches run on.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtrMut, DriverError};
use onnx_export::DataType;
use trtx::logger::{LogHandler, Severity};
use trtx::trtx_sys::Dims64;
use trtx::{CudaEngine, ExecutionContext, Logger, Runtime, RuntimeConfig};

use super::refit;
use crate::RuntimeError;
use crate::cache::CacheFile;
use crate::check::Fit;
use crate::description::InputShape;
use crate::engine::CudaGraphs;
use crate::library::Flavour;
use crate::recent::Recent;
use crate::tensor::{Input, Output, floats, volume, width};
use crate::weights::Weights;

/// Shapes whose graphs are kept. Texts come in few shapes, as batches are padded; a graph of a BERT takes some megabytes.
const GRAPHS: usize = 16;
/// What was compiled is kept no more often than this while batches run; at the end it always is.
const KEEP_EVERY: Duration = Duration::from_mins(1);

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
    cache: Cache,
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

/// What TensorRT-RTX compiled, and where it is kept.
struct Cache {
    #[cfg(not(feature = "tensorrt-enterprise"))]
    compiled: Option<Arc<trtx::RuntimeCache>>,
    file: Option<CacheFile>,
    /// Bytes as last read or written, by their number: what has not grown holds nothing new.
    kept_bytes: usize,
    kept_at: Instant,
    /// Whether a shape ran since that had not run before.
    has_news: bool,
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
        let (config, cache) = configure(&mut engine, loading.cuda_graphs, loading.cache)?;
        let mut contexts = Vec::new();
        let count = engine.nb_optimization_profiles().map_err(refused("count its profiles"))?;
        if usize::try_from(count) != Ok(loading.profiles.len()) {
            return Err(misdescribed(format!("{count} profiles, not {}", loading.profiles.len())));
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
            cache,
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
        self.cache.has_news |= is_new;
        if self.cache.has_news && self.cache.kept_at.elapsed() > KEEP_EVERY {
            self.keep_cache();
        }
        outputs
    }

    /// Keeps what TensorRT-RTX compiled, if that is more than was kept. Failing to costs the next process time only.
    pub(crate) fn keep_cache(&mut self) {
        #[cfg(not(feature = "tensorrt-enterprise"))]
        if let (Some(compiled), Some(file)) = (&self.cache.compiled, &self.cache.file) {
            self.cache.kept_at = Instant::now();
            self.cache.has_news = false;
            let Ok(bytes) = compiled.serialize() else {
                tracing::warn!("TensorRT-RTX does not say what it compiled, so nothing of it is kept");
                return;
            };
            if bytes.len() == self.cache.kept_bytes {
                return;
            }
            match file.save(&bytes) {
                Ok(()) => self.cache.kept_bytes = bytes.len(),
                Err(error) => {
                    tracing::warn!(path = %file.path().display(), cause = %error, "compiled kernels could not be kept");
                }
            }
        }
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
    let shape = sizes(&found).ok_or_else(|| misdescribed(format!("an output `{name}` of unknown shape")))?;
    let length = volume(&shape).and_then(|volume| volume.checked_mul(width(buffer.dtype)));
    let length = length.filter(|length| *length <= buffer.memory.len());
    let length = length.ok_or_else(|| misdescribed(format!("an output `{name}` of {shape:?}, too large")))?;
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
            .ok_or_else(|| misdescribed(format!("an output `{name}` of {dtype:?}, which is no float")))?;
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
        if names.contains(name) { Ok(()) } else { Err(misdescribed(format!("no `{name}`"))) }
    };
    let found_inputs: Vec<String> =
        engine.input_tensor_names().map_err(refused("list its inputs"))?.collect();
    let found_outputs: Vec<String> =
        engine.output_tensor_names().map_err(refused("list its outputs"))?.collect();
    let described: Vec<String> = profiles.iter().flatten().map(|input| input.name.clone()).collect();
    found_inputs.iter().try_for_each(|name| has(name, &described))?;
    described.iter().try_for_each(|name| has(name, &found_inputs))?;
    outputs.iter().try_for_each(|name| has(name, &found_outputs))?;
    let mut output_bytes = vec![0_usize; outputs.len()];
    for (context, profile) in contexts.iter_mut().zip(profiles) {
        for input in profile {
            let most: Vec<usize> = input.dims.iter().map(|span| span.max as usize).collect();
            context.set_input_shape(&input.name, &dims(&most)).map_err(refused("take its largest shape"))?;
        }
        for (bytes, name) in output_bytes.iter_mut().zip(outputs) {
            let most = context.max_output_size(name).map_err(refused("tell its largest output"))?;
            let most = usize::try_from(most).map_err(|_| misdescribed(format!("`{name}` of no limit")))?;
            *bytes = (*bytes).max(most);
        }
    }
    let buffer = |name: &String, bytes: usize| {
        let dtype = engine.tensor_data_type(name).map_err(refused("tell a type"))?;
        let dtype = dtype_of(dtype).ok_or_else(|| misdescribed(format!("`{name}` of {dtype:?}")))?;
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

#[cfg(not(feature = "tensorrt-enterprise"))]
fn configure(
    engine: &mut CudaEngine<'static>,
    graphs: CudaGraphs,
    file: Option<CacheFile>,
) -> Result<(Rc<RuntimeConfig<'static>>, Cache), RuntimeError> {
    use trtx::{CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy as Specialization};

    let doing = "configure itself";
    let mut config = engine.create_runtime_config().map_err(refused(doing))?;
    match graphs {
        CudaGraphs::Off => {}
        // What is recorded is recorded with the kernels of that moment: they should be the ones made for the shape.
        CudaGraphs::Recorded => {
            config.set_dynamic_shapes_kernel_specialization_strategy(Specialization::kEAGER);
        }
        CudaGraphs::BuiltIn => {
            config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE).map_err(refused(doing))?
        }
    }
    let mut cache = Cache { compiled: None, file, kept_bytes: 0, kept_at: Instant::now(), has_news: false };
    if let Some(file) = &cache.file {
        let compiled = config.create_runtime_cache().map_err(refused(doing))?;
        if let Some(bytes) = file.load() {
            match compiled.deserialize(&bytes) {
                Ok(()) => cache.kept_bytes = bytes.len(),
                Err(error) => {
                    tracing::warn!(path = %file.path().display(), cause = %error, "kept kernels are of no use");
                }
            }
        }
        let compiled = Arc::new(compiled);
        config.set_runtime_cache(Arc::clone(&compiled)).map_err(refused(doing))?;
        cache.compiled = Some(compiled);
    }
    Ok((Rc::new(config), cache))
}

#[cfg(feature = "tensorrt-enterprise")]
fn configure(
    engine: &mut CudaEngine<'static>,
    _graphs: CudaGraphs,
    file: Option<CacheFile>,
) -> Result<(Rc<RuntimeConfig<'static>>, Cache), RuntimeError> {
    let config = engine.create_runtime_config().map_err(refused("configure itself"))?;
    Ok((Rc::new(config), Cache { file, kept_bytes: 0, kept_at: Instant::now(), has_news: false }))
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

/// Opens TensorRT's library, once for the process.
fn open_library(path: &Path) -> Result<(), RuntimeError> {
    static OPENED: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(opened) = opened.as_ref() {
        return if opened == path {
            Ok(())
        } else {
            Err(RuntimeError::OtherLibrary { opened: opened.clone(), asked: path.to_owned() })
        };
    }
    trtx::dynamically_load_tensorrt(Some(path)).map_err(|error| RuntimeError::Library {
        path: path.to_owned(),
        runtime: Flavour::HERE.title(),
        reason: error.to_string(),
    })?;
    *opened = Some(path.to_owned());
    Ok(())
}

/// The errors that TensorRT logged last, for the error that follows them.
static SAID: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
/// As many of them as an error repeats.
const LAST_WORDS: usize = 8;

struct Logs;

impl LogHandler for Logs {
    fn log(&self, severity: Severity, message: &str) {
        let message = message.trim();
        match severity {
            Severity::InternalError | Severity::Error => {
                tracing::error!(target: "tensorrt", "{message}");
                let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() == LAST_WORDS {
                    said.pop_front();
                }
                said.push_back(message.to_owned());
            }
            Severity::Warning => tracing::warn!(target: "tensorrt", "{message}"),
            Severity::Info | Severity::Verbose => tracing::trace!(target: "tensorrt", "{message}"),
        }
    }
}

/// The logger of the process: it must outlive everything that TensorRT makes.
fn logger() -> Result<&'static Logger, RuntimeError> {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    if let Some(logger) = LOGGER.get() {
        return Ok(logger);
    }
    let logger = Logger::new(Logs).map_err(refused("start"))?;
    Ok(LOGGER.get_or_init(|| logger))
}

pub(super) fn refused(doing: &'static str) -> impl FnOnce(trtx::Error) -> RuntimeError {
    move |error| RuntimeError::Refused {
        runtime: Flavour::HERE.title(),
        doing,
        reason: error.to_string(),
        log: SAID.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect(),
    }
}

fn cuda(doing: &'static str) -> impl FnOnce(DriverError) -> RuntimeError {
    move |error| RuntimeError::Cuda { doing, reason: error.to_string() }
}

fn misdescribed(what: String) -> RuntimeError {
    RuntimeError::Refused {
        runtime: Flavour::HERE.title(),
        doing: "run the plan as engine.json describes it",
        reason: format!("it has {what}; build it again: build-engine --agent AGENT --rebuild"),
        log: Vec::new(),
    }
}

fn handle(stream: &CudaStream) -> *mut c_void {
    stream.cu_stream().cast()
}

fn dims(shape: &[usize]) -> Dims64 {
    let sizes: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
    Dims64::from_slice(&sizes)
}

/// TensorRT's dimensions; `None` if one is unknown.
fn sizes(dims: &Dims64) -> Option<Vec<usize>> {
    let count = usize::try_from(dims.nbDims).ok()?;
    dims.d.get(..count)?.iter().map(|size| usize::try_from(*size).ok()).collect()
}

/// TensorRT's types under their names in graphs; `None` for those that no graph of ours has.
pub(super) fn dtype_of(dtype: trtx::DataType) -> Option<DataType> {
    Some(match dtype {
        trtx::DataType::kFLOAT => DataType::F32,
        trtx::DataType::kHALF => DataType::F16,
        trtx::DataType::kBF16 => DataType::Bf16,
        trtx::DataType::kINT64 => DataType::I64,
        trtx::DataType::kINT32 => DataType::I32,
        trtx::DataType::kINT8 => DataType::I8,
        trtx::DataType::kBOOL => DataType::Bool,
        trtx::DataType::kFP8 => DataType::F8E4m3,
        _ => return None,
    })
}
