// Requests to the control service. A write carries the session's token; who has no session any more logs in again.

let session = { open: true, csrf: null, who: null };

export class Failed extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `HTTP ${status}`);
    this.status = status;
  }
}

export async function open() {
  session = await (await ask("/ops/session")).json();
  return session;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401) {
    location.assign("/ops/login");
    throw new Failed(401, { error: { message: "Log in again" } });
  }
  if (!answer.ok) throw new Failed(answer.status, await answer.json().catch(() => null));
  return answer;
}

export const get = async (path) => (await ask(path)).json();

export async function read(path) {
  const answer = await ask(path);
  return { body: await answer.json(), etag: answer.headers.get("etag") };
}

export async function post(path, body, match = null) {
  const headers = { "content-type": "application/json" };
  if (session.csrf) headers["x-csrf-token"] = session.csrf;
  if (match) headers["if-match"] = match;
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export async function logout() {
  await fetch("/ops/logout", { method: "POST", headers: session.csrf ? { "x-csrf-token": session.csrf } : {} });
  location.assign("/ops/login");
}
