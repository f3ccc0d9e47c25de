// A camera that takes several pictures with one click, one after the other, so that the thing can be turned meanwhile.
// Python receives the trigger "burst": {taken: <time>, pictures: [<JPEG in base64>, …]}.
const LONG_SIDE_PX = 1024, QUALITY = 0.92, MIN_PAUSE_MS = 50;
const REFUSED = {
  NotAllowedError: "The browser does not let this page use the camera. Allow it beside the address, or choose files.",
  NotFoundError: "The browser finds no camera. Choose files instead.",
  NotReadableError: "Another program uses the camera. Close it, switch the camera off here and on again.",
};
const INSECURE = "Browsers give the camera only to pages that are opened over https or on this machine. Choose files.";

export default function ({ parentElement, setTriggerValue, data }) {
  const find = (name) => parentElement.querySelector(name);
  const video = find("video"), status = find("p"), shoot = find(".shoot"), turn = find(".turn");
  shoot.textContent = data.count > 1 ? `Take ${data.count} photos` : "Take a photo";
  shoot.onclick = () => takeBurst();
  turn.onclick = () => start(parentElement.facing === "user" ? "environment" : "user");
  if (!parentElement.facing) start("environment"); // Python runs this function again at every change of the page

  async function start(facing) {
    parentElement.facing = facing;
    stop();
    if (!navigator.mediaDevices) return say(INSECURE);
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: facing, width: { ideal: 1280 }, height: { ideal: 960 } },
      });
      if (!video.isConnected || parentElement.facing !== facing) return stream.getTracks().forEach((t) => t.stop());
      video.srcObject = stream;
      await video.play();
      const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((d) => d.kind === "videoinput");
      turn.hidden = cameras.length < 2;
      shoot.disabled = false;
      say("");
    } catch (error) {
      say(REFUSED[error.name] ?? `The camera cannot be used: ${error.name}. Choose files instead.`);
    }
  }

  async function takeBurst() {
    const pictures = [];
    shoot.disabled = true;
    for (let taken = 1; taken <= data.count; taken++) {
      if (data.count > 1) say(`Photo ${taken} of ${data.count}: turn the thing a little.`);
      await new Promise((done) => setTimeout(done, taken > 1 ? data.pause_ms : MIN_PAUSE_MS));
      pictures.push(takePicture());
    }
    shoot.disabled = false;
    say(data.count > 1 ? `${data.count} photos taken.` : "");
    setTriggerValue("burst", { taken: Date.now(), pictures });
  }

  function takePicture() {
    const scale = Math.min(1, LONG_SIDE_PX / Math.max(video.videoWidth, video.videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", QUALITY).split(",")[1];
  }

  function say(text) {
    status.textContent = text;
  }

  function stop() {
    shoot.disabled = true;
    video.srcObject?.getTracks().forEach((track) => track.stop());
  }

  return stop; // called when the component leaves the page: the camera's light goes out
}
