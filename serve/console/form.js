// A form from a JSON schema: labels are the titles, help is the descriptions, limits are the schema's.

import { el } from "./dom.js";

/** Fill `form` with a field for each property of `schema`; `onChange(name, value)` gets undefined where a field is empty. */
export function buildForm(form, schema, values, onChange) {
  const fields = Object.entries(schema.properties).map(([name, property]) =>
    field(`${form.id}-${name}`, plain(property), values[name], (value) => onChange(name, value)),
  );
  form.replaceChildren(...fields);
  form.onsubmit = () => false;
}

/** Return a property with the alternative that is not null laid over it: `int | None` becomes an integer that may be empty. */
function plain(property) {
  const kind = property.anyOf?.find((one) => one.type !== "null") ?? {};
  return { ...property, ...kind };
}

function field(id, property, value, onChange) {
  const { input, read } = control(id, property, value);
  const error = el("p", { class: "error", id: `${id}-error`, hidden: true });
  input.addEventListener("change", () => {
    const problem = input.checkValidity() ? "" : input.validationMessage;
    error.textContent = problem;
    error.hidden = !problem;
    input.setAttribute("aria-invalid", String(Boolean(problem)));
    if (!problem) onChange(read());
  });
  return el(
    "div",
    { class: property.type === "boolean" ? "field inline" : "field" },
    el("label", { for: id }, property.title),
    input,
    error,
    property.description && el("p", { class: "quiet help", id: `${id}-help` }, property.description),
  );
}

function control(id, property, value) {
  const common = { id, "aria-describedby": `${id}-help ${id}-error` };
  if (property.type === "boolean") {
    const input = el("input", { ...common, type: "checkbox", role: "switch", checked: value ?? property.default ?? false });
    return { input, read: () => input.checked };
  }
  if (property.enum) return choice(common, property, value);
  return number(common, property, value);
}

function choice(common, property, value) {
  const options = property.enum.map((one) => el("option", { value: one }, one));
  const input = el("select", common, el("option", { value: "" }, "the server's"), ...options);
  input.value = value ?? "";
  return { input, read: () => input.value || undefined };
}

function number(common, property, value) {
  const least = property.minimum ?? property.exclusiveMinimum;
  const step = property.type === "integer" ? 1 : "any";
  const hint = typeof property.default === "number" ? property.default : "the server's";
  const limits = { min: least, max: property.maximum, step, placeholder: hint };
  const input = el("input", { ...common, type: "number", inputmode: "decimal", ...limits });
  input.value = value ?? "";
  const above = property.exclusiveMinimum; // HTML has inclusive limits only
  input.addEventListener("input", () => {
    const tooLow = above !== undefined && input.value !== "" && Number(input.value) <= above;
    input.setCustomValidity(tooLow ? `Give more than ${above}.` : "");
  });
  return { input, read: () => (input.value === "" ? undefined : Number(input.value)) };
}
