// One image's whole life through @aws-sdk/client-lambda-microvms. Endpoint, region and keys come from the environment
// as for any program that uses the SDK. Prints one JSON object: what was seen, and the seconds it took.
import {
  CreateMicrovmAuthTokenCommand, CreateMicrovmImageCommand, DeleteMicrovmImageCommand, GetMicrovmCommand,
  GetMicrovmImageBuildCommand, GetMicrovmImageCommand, GetMicrovmImageVersionCommand, LambdaMicrovmsClient,
  ListMicrovmImageBuildsCommand, ListMicrovmImageVersionsCommand, ListMicrovmsCommand, RunMicrovmCommand,
  SuspendMicrovmCommand, TerminateMicrovmCommand,
} from "@aws-sdk/client-lambda-microvms";

const { SCENARIO_BASE: baseImageArn, SCENARIO_ROLE: buildRoleArn, SCENARIO_CODE: uri } = process.env;
const client = new LambdaMicrovmsClient({});
const call = (Command, input) => client.send(new Command(input));

async function until(Command, input, isRight) {
  for (let tries = 0; tries < 2000; tries++) {
    const found = await call(Command, input);
    if (isRight(found)) return found;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`${Command.name} never answered what was waited for`);
}

async function refusal(Command, input) {
  try {
    await call(Command, input);
    return null;
  } catch (error) {
    return { name: error.name, status: error.$metadata?.httpStatusCode, message: error.message };
  }
}

const began = performance.now();
const seen = {};
const created = await call(CreateMicrovmImageCommand, { name: "from-javascript", baseImageArn, buildRoleArn,
                                                        codeArtifact: { uri }, tags: { team: "a b" } });
const image = { imageIdentifier: created.imageArn };
seen.created = [created.$metadata.httpStatusCode, created.state, created.imageVersion];
seen.isTimeADate = created.createdAt instanceof Date;
await until(GetMicrovmImageCommand, image, (found) => found.state === "CREATED");
const versions = await call(ListMicrovmImageVersionsCommand, image);
seen.versions = versions.items.map((each) => [each.imageVersion, each.state, each.status]);
const version = { ...image, imageVersion: "1.0" };
seen.memory = (await call(GetMicrovmImageVersionCommand, version)).resources[0].minimumMemoryInMiB;
const [{ buildId }] = (await call(ListMicrovmImageBuildsCommand, version)).items;
seen.build = (await call(GetMicrovmImageBuildCommand, { ...version, buildId })).buildState;

const run = await call(RunMicrovmCommand, { ...image, idlePolicy: {
  maxIdleDurationSeconds: 900, suspendedDurationSeconds: 1800, autoResumeEnabled: true } });
const microvm = { microvmIdentifier: run.microvmId };
seen.run = [run.state, run.maximumDurationInSeconds];
await until(GetMicrovmCommand, microvm, (found) => found.state === "RUNNING");
seen.listed = (await call(ListMicrovmsCommand, image)).items.map((each) => each.microvmId === run.microvmId);
const { authToken } = await call(CreateMicrovmAuthTokenCommand, { ...microvm, expirationInMinutes: 5,
                                                                  allowedPorts: [{ port: 8080 }] });
const ask = async (path) => {
  const answer = await fetch(`https://${run.endpoint}${path}`, { headers: authToken });
  return [answer.status, (await answer.json()).path];
};
seen.answer = await ask("/first");
await call(SuspendMicrovmCommand, microvm);
await until(GetMicrovmCommand, microvm, (found) => found.state === "SUSPENDED");
seen.woken = await ask("/second");
seen.state = (await call(GetMicrovmCommand, microvm)).state;
seen.inUse = await refusal(DeleteMicrovmImageCommand, image);
await call(TerminateMicrovmCommand, microvm);
seen.reason = (await until(GetMicrovmCommand, microvm, (found) => found.state === "TERMINATED")).stateReason;
seen.deleted = (await call(DeleteMicrovmImageCommand, image)).state;
for (let tries = 0; tries < 2000 && !seen.gone; tries++) seen.gone = await refusal(GetMicrovmImageCommand, image);
seen.seconds = (performance.now() - began) / 1000;
console.log(JSON.stringify(seen));
