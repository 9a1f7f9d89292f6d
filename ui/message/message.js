// The body of a function of (element, props, trigger, watch), which gr.HTML calls once.

const line = element.querySelector(".message");

function show() {
  line.textContent = (props.value ?? []).map(([key, values]) => say(key, values)).join("");
}

watch("value", show);
show();
