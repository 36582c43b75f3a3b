// Runs models in onnxruntime-web: run_in_web.cjs FILE.json, with paths of models and their inputs.
// Prints one JSON object: output name to numbers, for each model.
const fs = require("fs");
const ort = require("onnxruntime-web");

function tensor({ dtype, shape, data }) {
  if (dtype === "int64") {
    return new ort.Tensor(dtype, BigInt64Array.from(data, BigInt), shape);
  }
  if (dtype === "bool") {
    return new ort.Tensor(dtype, Uint8Array.from(data), shape);
  }
  return new ort.Tensor(dtype, Float32Array.from(data), shape);
}

async function run({ model, inputs }) {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(model)));
  const feeds = Object.entries(inputs).map(([name, one]) => [name, tensor(one)]);
  const results = await session.run(Object.fromEntries(feeds));
  const outputs = Object.entries(results).map(([name, one]) => [name, Array.from(one.data)]);
  return Object.fromEntries(outputs);
}

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
run(JSON.parse(fs.readFileSync(process.argv[2]))).then((found) =>
  process.stdout.write(JSON.stringify(found))
);
