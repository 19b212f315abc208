// How times and names are told.

const NAMES = { http: "HTTP", mqtt: "MQTT", hotfolder: "Hot folder", queue: "Queue server", webhook: "Webhook" };

/** A door's name as people say it. */
export const sourceName = (source) => NAMES[source] ?? source;

/** Seconds, or minutes where they are many. */
export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** How long ago a moment is; beyond a day its date. */
export function ago(moment) {
  const at = new Date(moment);
  const passed = Math.max(0, (Date.now() - at) / 1000);
  if (passed < 45) return "just now";
  if (passed < 3600) return `${Math.max(1, Math.round(passed / 60))} min ago`;
  if (passed < 86_400) return `${Math.round(passed / 3600)} h ago`;
  return at.toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}
