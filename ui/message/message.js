// The body of a function of (element, props, trigger, watch), which gr.HTML calls once.

const line = element.querySelector(".message");
line.classList.toggle("problem", props.alarm);

function show() {
  line.textContent = (props.value || []).map(([key, { line: error, ...values }]) => say(key, { ...values, line: error && sayError(error) })).join("");
}

watch("value", show);
show();
